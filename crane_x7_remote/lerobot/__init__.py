"""What runs inside LeRobot's own environment, as a child process; nothing else imports it."""
