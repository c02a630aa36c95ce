"""How the CRANE-X7 is reached and its policies run on a rented machine."""
