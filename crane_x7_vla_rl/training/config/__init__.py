"""One loader for every configuration, and what both trainers share of it."""
