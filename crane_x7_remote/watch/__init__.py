"""A running loop and its robot, shown in a terminal."""
