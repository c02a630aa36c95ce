"""Checkpoints: written whole or not at all, resumed, merged, published."""
