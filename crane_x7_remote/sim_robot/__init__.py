"""A simulated robot behind rosbridge, for the demo and the tests."""
