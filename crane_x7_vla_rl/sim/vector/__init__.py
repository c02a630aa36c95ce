"""Many simulated arms behind one protocol."""
