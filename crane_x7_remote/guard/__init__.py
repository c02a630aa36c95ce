"""A gate before rosbridge, beside the robot: the last word on what may move the arm."""
