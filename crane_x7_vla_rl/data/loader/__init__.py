"""Batches for training: order, samples, prefetching."""
