"""The inference loop: frame in, checked trajectory out, at a fixed rate."""
