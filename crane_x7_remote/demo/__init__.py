"""Simulated robot and loop together, watched, recorded and reported."""
