"""Inference: generation, evaluation of given actions, 8-bit weights, CUDA graphs."""
