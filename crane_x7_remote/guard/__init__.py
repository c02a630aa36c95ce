"""The gate before rosbridge, beside the robot: it has the last word on what moves the arm."""
