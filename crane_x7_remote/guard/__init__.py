"""The gate in front of rosbridge, next to the robot: it decides what may move the arm."""
