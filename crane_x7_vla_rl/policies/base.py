"""The Policy protocol and `load_policy`, the one table from a name to a policy.

Observations come in as a batch, one `ActionChunk` for each goes out. The loop and the trainer know
policies through this file alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from crane_x7_vla_rl.types import ActionChunk, Observation

POLICY_NAMES = ("color-servo",)


class PolicyLoadError(Exception):
    """A policy could not be made ready; says what was asked for, what was found, what to do."""


class Policy(Protocol):
    """Turns observations into chunks of joint targets."""

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one chunk per observation; slot i of every call belongs to robot i."""
        ...

    def reset(self) -> None:
        """Forget everything remembered about earlier observations, of all slots."""
        ...


def load_policy(name: str, *, model_path: str | None = None, device: str = "cpu") -> Policy:
    """Make the policy called `name` (one of POLICY_NAMES) ready to predict.

    `model_path` is a local folder or a Hub id, for policies with weights; `device` is a torch
    device. Raises PolicyLoadError.
    """
    if name == "color-servo":
        from crane_x7_vla_rl.policies.color_servo import ColorServo

        return ColorServo()
    del model_path, device
    raise PolicyLoadError(f"policy {name!r} is unknown; known: {', '.join(POLICY_NAMES)}")
