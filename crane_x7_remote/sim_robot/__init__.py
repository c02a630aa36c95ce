"""A rosbridge-speaking robot backed by the simulation, for the demo and the tests."""
