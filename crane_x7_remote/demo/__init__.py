"""The simulated robot and the loop together, watched, recorded and reported."""
