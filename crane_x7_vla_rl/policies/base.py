"""The Policy protocol and `load_policy`, the one table from a name to a policy.

Observations come in as a batch, one `ActionChunk` for each goes out. The loop and the trainer know
policies through this file alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from crane_x7_vla_rl.robot import JOINT_NAMES
from crane_x7_vla_rl.types import ActionChunk, Observation

POLICY_NAMES = ("color-servo", "openvla")
DEFAULT_UNNORM_KEY = "crane_x7"
SHIPPED: Final = Path(__file__).parent / "tiny"
"""Folder of the checkpoint that comes with the project; see its README.md."""


class PolicyLoadError(Exception):
    """A policy could not be made ready; says what was asked for, what was found, what to do."""


class NotFiniteError(PolicyLoadError):
    """Weights, or what comes of them, hold NaN or infinities; names the weights, or the input."""


class Policy(Protocol):
    """Turns observations into chunks of joint targets.

    One that rightly answers the same whatever the picture, as where it sees nothing to grasp, has
    an attribute `may_answer_alike` that is true; of any other, the loop says so at its start.
    """

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one chunk per observation; slot i of every call belongs to robot i."""
        ...

    def reset(self) -> None:
        """Forget everything remembered about earlier observations, of all slots."""
        ...


@dataclass(frozen=True)
class ModelOptions:
    """Which model a policy with weights loads, and what its files may not say."""

    path: str | None = None
    """Local folder or Hub id."""
    device: str = "cpu"
    """Torch device."""
    unnorm_key: str = DEFAULT_UNNORM_KEY
    """Names the statistics that turn outputs into radians."""
    token: str | None = None
    """For private models on the Hub."""
    center_crop: bool | None = None
    """Whether training used random crops; None: as the checkpoint says, else no."""
    chunk_steps: int | None = None
    """Steps that an OpenVLA-OFT checkpoint predicts at once."""
    temperature: float = 0.0
    """Of OpenVLA's tokens: 0 takes the likeliest."""
    seed: int = 0
    """Of sampled tokens."""


def load_policy(name: str, options: ModelOptions | None = None) -> Policy:
    """Make the policy called `name` (one of POLICY_NAMES) ready to predict.

    `options` matter to policies with weights alone. Raises PolicyLoadError.
    """
    if name == "color-servo":
        from crane_x7_vla_rl.policies.color_servo.policy import ColorServo

        return ColorServo()
    if name == "openvla":
        return _load_openvla(options or ModelOptions())
    raise PolicyLoadError(f"policy {name!r} is unknown; known: {', '.join(POLICY_NAMES)}")


def _load_openvla(options: ModelOptions) -> Policy:
    if options.path is None:
        raise PolicyLoadError(
            "policy 'openvla' needs a model: set VLA_MODEL_PATH to a folder or to a Hub id"
        )
    try:
        from crane_x7_vla_rl.policies.openvla import policy
    except ModuleNotFoundError as error:
        raise PolicyLoadError(
            f"VLA_MODEL_PATH={options.path}: policy 'openvla' needs the package {error.name}: pip"
            " install 'crane-x7-remote[train]', or build the image without EXTRAS="
        ) from error
    return policy.load(options)


def only_numbers(chunk: ActionChunk, instruction: str) -> ActionChunk:
    """Return the chunk; raises NotFiniteError where a target is NaN or infinite."""
    if not np.isfinite(chunk.position_rad).all():
        step, joint = np.argwhere(~np.isfinite(chunk.position_rad))[0]
        raise NotFiniteError(
            f"the answer to {instruction!r} is {chunk.position_rad[step, joint]} for"
            f" {JOINT_NAMES[joint]} in step {step + 1} of {len(chunk.position_rad)}, expected"
            " numbers"
        )
    return chunk


def has_random_weights(model_path: str) -> bool:
    """Whether a local checkpoint says that nobody has trained it; see openvla.builder."""
    try:
        config = json.loads((Path(model_path).expanduser() / "config.json").read_text())
    except (OSError, ValueError):
        return False  # loading it says what is wrong
    return isinstance(config, dict) and bool(config.get("random_weights"))
