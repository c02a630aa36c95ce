"""LeRobot's trainer, run as a process in its own environment; nothing of LeRobot is imported."""
