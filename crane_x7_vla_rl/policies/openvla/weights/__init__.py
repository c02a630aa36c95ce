"""Checkpoints of it: layouts, loading, adapters, LoRA."""
