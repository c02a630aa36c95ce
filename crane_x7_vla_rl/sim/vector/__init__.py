"""Many simulated arms with one protocol."""
