"""The Policy protocol and its types. A batch of observations → one `ActionChunk` each.

The loop and the trainer use policies only through this file and `load`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from crane_x7_vla_rl.camera_pose import CameraPose
from crane_x7_vla_rl.fields import FiniteAmount, FinitePositive
from crane_x7_vla_rl.robot import JOINT_NAMES
from crane_x7_vla_rl.types import ActionChunk, Observation

DEFAULT_UNNORM_KEY = "crane_x7"
AUTO = "auto"
"""Device: CUDA if available, otherwise the CPU."""


class PolicyLoadError(Exception):
    """A policy could not be loaded; says the value, what was expected, what to do."""


class NotFiniteError(PolicyLoadError):
    """Weights or outputs contain NaN or infinities; names the weights, or the input."""


class Policy(Protocol):
    """Turns observations into chunks of joint targets.

    A policy whose output may be correct and still equal for different images, such as when it sees
    nothing to grasp, has a true attribute `may_answer_alike`; for any other, the loop logs a
    warning at its start. A policy that follows only some instructions is an `Interpreter`, one that
    needs the camera's pose a `CameraUser`, one that wants a second camera a `CameraChooser`, one
    that gives up late predictions `Timed`; the loop looks for their members.
    """

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one chunk per observation; slot i of every call belongs to robot i."""
        ...

    def reset(self) -> None:
        """Forget all earlier observations, of all slots."""
        ...


@runtime_checkable
class Interpreter(Protocol):
    """A policy that follows only some instructions."""

    def refusal(self, instruction: str) -> str | None:
        """Return why it cannot follow `instruction` and what it understands; None if it can.

        May be called from another thread than `predict`.
        """
        ...


@runtime_checkable
class CameraUser(Protocol):
    """A policy that measures in the image: with a wrong camera pose it moves to wrong positions."""

    def look_through(self, pose: CameraPose) -> None:
        """Set the pose of the camera for all further images.

        May be called from another thread than `predict`.
        """
        ...


@runtime_checkable
class CameraChooser(Protocol):
    """A policy that wants images of further cameras besides the base camera's."""

    @property
    def more_cameras(self) -> tuple[str, ...]:
        """Keys that it needs in `Observation.more_images`."""
        ...


def more_cameras(policy: Policy) -> tuple[str, ...]:
    """Return the cameras that `policy` wants besides the base camera."""
    return policy.more_cameras if isinstance(policy, CameraChooser) else ()


@runtime_checkable
class Timed(Protocol):
    """A policy in another process, whose late predictions are given up."""

    def warming_up(self) -> AbstractContextManager[None]:
        """While this is open, give each prediction the time of the first one: nothing drives."""
        ...


def warming_up(policy: Policy) -> AbstractContextManager[None]:
    """Return the context in which `policy` is warmed up."""
    return policy.warming_up() if isinstance(policy, Timed) else nullcontext()


@dataclass(frozen=True)
class ModelOptions:
    """Which model a policy with weights loads, and settings that its files may not contain."""

    path: str | None = None
    """Local folder or Hub id."""
    device: str = "cpu"
    """Device: cuda, cuda:1, cpu, or auto (CUDA if available, otherwise the CPU)."""
    unnorm_key: str = DEFAULT_UNNORM_KEY
    """Key of the statistics that convert outputs to radians."""
    token: str | None = field(default=None, repr=False)
    """Access token for private models on the Hub."""
    center_crop: bool | None = None
    """Whether training used random crops; None: the checkpoint's value, default no."""
    chunk_steps: int | None = None
    """Number of steps in each prediction of an OpenVLA-OFT checkpoint."""
    temperature: FiniteAmount = 0.0
    """Sampling temperature of OpenVLA's tokens; 0: always the most likely token."""
    seed: int = 0
    """Seed of sampled tokens."""
    speculation: bool = False
    """Decode OpenVLA's tokens in fewer passes, with the last action as a draft."""
    server: str | None = None
    """Address of a policy server, such as ws://host:8000, for the policy `remote`."""
    proxy: str | None = field(default=None, repr=False)
    """Proxy towards the policy server, such as socks5h://127.0.0.1:1055."""
    api_key: str | None = field(default=None, repr=False)
    """Key that the policy server expects."""
    policy_io: str | None = None
    """YAML file, or name of a preset, that describes the policy's inputs and outputs."""
    jpeg_quality: int | None = None
    """Quality of JPEG pictures for a policy server, 1 to 100; unset: uncompressed."""
    lerobot_venv: str | None = None
    """Folder of LeRobot's environment; unset: the usual places, see lerobot_env.py."""
    answer_timeout_s: FinitePositive = 1.0
    """After this many seconds without an answer a prediction of another process is given up; the
    first one, during which it may compile, has longer, and so has each one of a warm-up."""
    more_cameras: tuple[str, ...] = ()
    """Cameras whose images come in `Observation.more_images`; a policy that wants another one is
    refused."""


def only_numbers(chunk: ActionChunk, instruction: str) -> ActionChunk:
    """Return the chunk; raises NotFiniteError if a target is NaN or infinite."""
    if not np.isfinite(chunk.position_rad).all():
        step, joint = np.argwhere(~np.isfinite(chunk.position_rad))[0]
        raise NotFiniteError(
            f'the prediction for "{instruction}" is {chunk.position_rad[step, joint]} for'
            f" {JOINT_NAMES[joint]} in step {step + 1} of {len(chunk.position_rad)}, expected"
            " finite numbers"
        )
    return chunk
