"""The body behind the simulated robot: its interface, and the lightest implementation.

Joint targets → measured joints, camera images. `KinematicArm` has no physics and starts at once,
for tests and benchmarks of the loop; `maniskill_arm.ManiSkillArm` is the simulated CRANE-X7 with
cubes, plate and cameras.

Vectors are (8,) rad in the order of robot.JOINT_NAMES.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import simplejpeg

from crane_x7_vla_rl.robot import DOF, HOME_RAD, LOWER_RAD, UPPER_RAD, VELOCITY_RAD_S
from crane_x7_vla_rl.types import JointState

Array = npt.NDArray[np.float64]


class Arm(Protocol):
    """A CRANE-X7 body; created, used and closed on one thread."""

    @property
    def period_s(self) -> float:
        """Simulated time of one `step`."""

    def step(self, target_rad: Array) -> None:
        """Move towards `target_rad` (8,) for one period."""

    def joints(self) -> JointState:
        """Return the current joint readings."""

    def jpeg(self) -> bytes:
        """Return the camera's current image."""

    def wrist_jpeg(self) -> bytes:
        """Return the current image of the camera on the gripper."""

    def view_jpeg(self) -> bytes:
        """Return a current image of the whole arm; for people, never for a policy."""

    def scene(self) -> dict[str, dict[str, Any]]:
        """Return the true state of each cube by colour; for reports only, never for a policy."""

    def put_back(self, colour: str) -> None:
        """Put a cube back at rest at its start position, as a hand would; an absent cube is
        ignored."""

    def arrange(self, seed: int) -> None:
        """Put cubes and plate where the scene of `seed` has them; the arm stays where it is."""

    def close(self) -> None:
        """Free the simulation."""


class KinematicArm:
    """Follows its targets with a first-order lag within the limits; its images never change."""

    def __init__(
        self, period_s: float = 1 / 60, lag_s: float = 0.02, jpeg: bytes | None = None
    ) -> None:
        self.period_s = period_s
        self._share = 1.0 if lag_s <= 0 else 1 - float(np.exp(-period_s / lag_s))
        self._position = HOME_RAD.copy()
        self._velocity = np.zeros(DOF)
        self._jpeg = still_picture() if jpeg is None else jpeg

    def step(self, target_rad: Array) -> None:
        target = np.clip(target_rad, LOWER_RAD, UPPER_RAD)
        most = VELOCITY_RAD_S * self.period_s
        movement = np.clip(self._share * (target - self._position), -most, most)
        self._position = self._position + movement
        self._velocity = movement / self.period_s

    def joints(self) -> JointState:
        return JointState(self._position, self._velocity)

    def jpeg(self) -> bytes:
        return self._jpeg

    def wrist_jpeg(self) -> bytes:
        return _upside_down(self._jpeg)

    def view_jpeg(self) -> bytes:
        return self._jpeg

    def scene(self) -> dict[str, dict[str, Any]]:
        return {}

    def put_back(self, colour: str) -> None:
        """Has no cubes."""

    def arrange(self, seed: int) -> None:
        """Has no scene."""

    def close(self) -> None:
        """Nothing to free."""


@cache
def _upside_down(jpeg: bytes) -> bytes:
    pixels = np.ascontiguousarray(simplejpeg.decode_jpeg(jpeg)[::-1])
    encoded: bytes = simplejpeg.encode_jpeg(pixels, quality=90, colorsubsampling="420")
    return encoded


def still_picture(width: int = 640, height: int = 480, noise: float = 7.7) -> bytes:
    """Return a JPEG with three coloured squares; the noise makes 640×480 weigh about 80 KB."""
    column, row = np.meshgrid(np.linspace(60, 160, width), np.linspace(0, 40, height))
    picture = np.repeat((column + row)[:, :, None], 3, axis=2)
    side, top = height // 8, height // 2
    for index, colour in enumerate(((200, 30, 30), (30, 160, 30), (30, 60, 200))):
        left = (index + 1) * width // 4
        picture[top : top + side, left : left + side] = colour
    picture += np.random.default_rng(0).normal(0, noise, picture.shape)
    pixels = np.clip(picture, 0, 255).astype(np.uint8)
    encoded: bytes = simplejpeg.encode_jpeg(pixels, quality=90, colorsubsampling="420")
    return encoded
