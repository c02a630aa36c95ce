"""Episodes of the real arm: recorded into a LeRobot data set, and replayed."""
