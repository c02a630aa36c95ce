"""The types that rooms exchange, with shapes and units: Observation, ActionChunk, Trajectory, …

Legend: H, W image height and width; T steps of a chunk or trajectory; 8 joints in the order of
`robot.JOINT_NAMES` (seven arm joints, then the gripper), in rad. Arrays are checked once, when the
object is made, and are read-only afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.robot import DOF

Image = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float64]
WRIST: Final = "wrist"
"""Name of the camera on the gripper in `Observation.more_images`."""


def _joints(name: str, values: npt.ArrayLike, steps: bool = False) -> Array:
    """Return a read-only float64 copy of shape (8,) or (T, 8); raise ValueError otherwise."""
    array = np.array(values, dtype=np.float64)
    expected = 2 if steps else 1
    if array.ndim != expected or array.shape[-1] != DOF or 0 in array.shape:
        wanted = f"(T, {DOF})" if steps else f"({DOF},)"
        raise ValueError(f"{name} has shape {array.shape}, expected {wanted}")
    array.setflags(write=False)
    return array


@dataclass(frozen=True, eq=False, slots=True)
class JointState:
    """Measured joints at one time. Values may be non-finite: the safety check refuses those."""

    position_rad: Array
    """(8,) float64."""
    velocity_rad_s: Array
    """(8,) float64; NaN if the robot does not report it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "position_rad", _joints("position_rad", self.position_rad))
        object.__setattr__(self, "velocity_rad_s", _joints("velocity_rad_s", self.velocity_rad_s))


@dataclass(frozen=True, eq=False, slots=True)
class Observation:
    """Input of a policy at one time; it contains no privileged values."""

    image: Image
    """(H, W, 3) uint8, RGB."""
    joints: JointState
    instruction: str
    time_s: float
    """When the image was taken, on a monotonic clock with an arbitrary zero."""
    more_images: Mapping[str, Image] = field(default_factory=dict)
    """Camera, such as WRIST → (H, W, 3) uint8, RGB, taken at about the same time; only those that
    the policy wants, see policies.base.more_cameras."""

    def __post_init__(self) -> None:
        for name, image in {"image": self.image, **self.more_images}.items():
            shape, dtype = image.shape, image.dtype
            if len(shape) != 3 or shape[2] != 3 or dtype != np.uint8:
                raise ValueError(f"{name} is {shape} {dtype}, expected (H, W, 3) uint8 RGB")


@dataclass(frozen=True, eq=False, slots=True)
class ActionChunk:
    """Joint targets of a policy, unchecked: step k is due (k + 1)·period_s after the observation's
    image was taken."""

    position_rad: Array
    """(T, 8) float64, absolute targets of any value: the safety check decides."""
    period_s: float

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "position_rad", _joints("ActionChunk.position_rad", self.position_rad, steps=True)
        )
        if not (np.isfinite(self.period_s) and self.period_s > 0):
            raise ValueError(f"period_s is {self.period_s}, expected a positive number of seconds")


@dataclass(frozen=True, eq=False, slots=True)
class Trajectory:
    """Checked joint targets for the robot; the last point is a safe position to hold."""

    position_rad: Array
    """(T, 8) float64."""
    velocity_rad_s: Array
    """(T, 8) float64; the last row is zero."""
    time_from_start_s: Array
    """(T,) float64, increasing, counted from `stamp_s`."""
    stamp_s: float
    """Header stamp, on the robot's clock, of the frame that it was predicted from."""
    sequence: int
    """Increases by one with each trajectory that this loop publishes."""
    session: str
    """Name of the loop that sent it; so two loops can detect each other."""
    valid_s: float
    """After `stamp_s + valid_s`, on the robot's clock, a receiver must refuse the trajectory."""
