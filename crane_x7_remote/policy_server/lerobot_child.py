"""A LeRobot checkpoint in a child process: `ModelOptions` → a `Policy` that asks it."""

from __future__ import annotations

from crane_x7_vla_rl.policies.base import ModelOptions, Policy


def load(options: ModelOptions) -> Policy:
    """Return the policy of the checkpoint `options.path`; raises PolicyLoadError."""
    raise NotImplementedError
