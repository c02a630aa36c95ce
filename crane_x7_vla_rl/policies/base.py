"""The Policy protocol and its plain types. A batch of observations → one `ActionChunk` each.

The loop and the trainer know policies through this file and `load` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from crane_x7_vla_rl.camera_pose import CameraPose
from crane_x7_vla_rl.fields import FiniteAmount
from crane_x7_vla_rl.robot import JOINT_NAMES
from crane_x7_vla_rl.types import ActionChunk, Observation

DEFAULT_UNNORM_KEY = "crane_x7"
AUTO = "auto"
"""Device: CUDA where there is one, else the CPU."""


class PolicyLoadError(Exception):
    """A policy could not be made ready; says what came, what was expected, what to do."""


class NotFiniteError(PolicyLoadError):
    """Weights, or what comes of them, hold NaN or infinities; names the weights, or the input."""


class Policy(Protocol):
    """Turns observations into chunks of joint targets.

    One that rightly answers the same whatever the picture, as where it sees nothing to grasp, has
    an attribute `may_answer_alike` that is true; of any other, the loop says so at its start.
    One that follows some instructions only is an `Interpreter`, one that must know where the camera
    stands a `CameraUser`; the loop looks for their methods.
    """

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one chunk per observation; slot i of every call belongs to robot i."""
        ...

    def reset(self) -> None:
        """Forget everything remembered about earlier observations, of all slots."""
        ...


@runtime_checkable
class Interpreter(Protocol):
    """A policy that follows some instructions only."""

    def refusal(self, instruction: str) -> str | None:
        """Return why it cannot follow `instruction` and what it understands; None where it can.

        May be called from another thread than `predict`.
        """
        ...


@runtime_checkable
class CameraUser(Protocol):
    """A policy that measures in the picture: wrong about the camera, it moves to wrong places."""

    def look_through(self, pose: CameraPose) -> None:
        """Take the pose of the camera whose pictures come from now on.

        May be called from another thread than `predict`.
        """
        ...


@dataclass(frozen=True)
class ModelOptions:
    """Which model a policy with weights loads, and what its files may not say."""

    path: str | None = None
    """Local folder or Hub id."""
    device: str = "cpu"
    """Device: cuda, cuda:1, cpu, or auto for CUDA where there is one."""
    unnorm_key: str = DEFAULT_UNNORM_KEY
    """Names the statistics that turn outputs into radians."""
    token: str | None = None
    """For private models on the Hub."""
    center_crop: bool | None = None
    """Whether training used random crops; None: as the checkpoint says, else no."""
    chunk_steps: int | None = None
    """Steps that an OpenVLA-OFT checkpoint predicts at once."""
    temperature: FiniteAmount = 0.0
    """Of OpenVLA's tokens: 0 takes the likeliest."""
    seed: int = 0
    """Of sampled tokens."""


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
