"""How the CRANE-X7 is reached, and how its policies run on a rented machine."""
