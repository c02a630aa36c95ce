"""A policy on a server: `ModelOptions` → a `Policy` that asks it."""

from __future__ import annotations

from crane_x7_vla_rl.policies.base import ModelOptions, Policy


def load(options: ModelOptions) -> Policy:
    """Return the policy of `options.server`; raises PolicyLoadError."""
    raise NotImplementedError
