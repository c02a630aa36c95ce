"""Checkpoints of OpenVLA: layouts, loading, adapters, LoRA."""
