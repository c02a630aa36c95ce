"""Demonstrations from simulation."""
