"""The demo: simulated robot and loop together, recorded and reported."""
