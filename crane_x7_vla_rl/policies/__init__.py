"""Policies: from an observation to a chunk of joint targets."""
