"""Rent a machine, train on it, bring the results home, always delete it.

A training's files and a budget → its outputs here, and nothing that is still rented.
"""
