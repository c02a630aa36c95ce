"""The expert's next steps, by kinematics alone. Measured joints and a place → a chunk of targets.

As `sim.expert` moves to hover over a thing and down to it, with a servo that follows each target
most of the way. Only for a hand that is not over the thing yet: the rest depends on contact.

Legend: T steps of a chunk; m and rad.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from crane_x7_vla_rl import kinematics
from crane_x7_vla_rl.robot import ARM_DOF, LOWER_RAD, UPPER_RAD
from crane_x7_vla_rl.sim.expert import (
    GRASP_M,
    HOVER_M,
    LAG_S,
    OPEN_RAD,
    RELEASE_M,
    SHUT_RAD,
    TOP_M,
    Manner,
)
from crane_x7_vla_rl.training.pointing.views import above
from crane_x7_vla_rl.types import Array

FOLLOWED: Final = 0.86
"""Share of the way to a target that the simulated arm has done when the next one is due."""
DOWN_RAD: Final = 0.13
"""Largest step on the way straight down, which the expert limits by height."""
THERE_RAD: Final = 0.05
LIFTED_M: Final = TOP_M - 0.03
"""Height from which a cube is carried."""
OVER_CUBE_M, OVER_PLATE_M = 0.03, 0.06
"""A hand nearer than this, sideways, is over the thing."""


def to_cube(joints_rad: Array, cube_m: Array, steps: int, period_s: float) -> Array | None:
    """Return (T, 8) to hover over the cube at (2,) and descend, None for a hand over it.

    Raises UnreachableError.
    """
    if _is_over(joints_rad, cube_m, OVER_CUBE_M):
        return None
    return _path(joints_rad, cube_m, (HOVER_M, GRASP_M), OPEN_RAD, steps, period_s)


def to_plate(joints_rad: Array, plate_m: Array, steps: int, period_s: float) -> Array | None:
    """Return (T, 8) to lift a cube, carry it over the plate at (2,) and lower it, None for a hand
    over it.

    Raises UnreachableError.
    """
    if _is_over(joints_rad, plate_m, OVER_PLATE_M):
        return None
    return _path(joints_rad, plate_m, (TOP_M, RELEASE_M), SHUT_RAD, steps, period_s, LIFTED_M)


def _is_over(joints: Array, place_m: Array, nearer_m: float) -> bool:
    tool_m = kinematics.tool_frame(joints[:ARM_DOF])[:2, 3]
    return bool(np.linalg.norm(tool_m - place_m) < nearer_m)


def _path(
    joints: Array, place_m: Array, heights_m: Sequence[float], fingers: float, steps: int,
    period_s: float, lifted_m: float = 0.0,
) -> Array:  # fmt: skip
    """`lifted_m`: below this height the hand first goes straight up."""
    manner = Manner(arm_rad_s=1.0)
    longest = manner.arm_rad_s * (period_s + LAG_S)
    reach = manner.gripper_rad_s * (period_s + LAG_S)
    over, down = (above(place_m, height) for height in heights_m)
    up = above(kinematics.tool_frame(joints[:ARM_DOF])[:2, 3], heights_m[0])
    measured, targets, is_over = joints.copy(), [], False
    for _ in range(steps):
        is_over = is_over or bool(np.abs(over - measured[:ARM_DOF]).max() < THERE_RAD)
        is_low = kinematics.tool_frame(measured[:ARM_DOF])[2, 3] < lifted_m and not is_over
        away = (down if is_over else up if is_low else over) - measured[:ARM_DOF]
        limit = DOWN_RAD if is_over else longest
        target = measured.copy()
        target[:ARM_DOF] += away * min(1.0, limit / max(float(np.abs(away).max()), 1e-9))
        target[ARM_DOF] += np.clip(fingers - measured[ARM_DOF], -reach, reach)
        target = np.clip(target, LOWER_RAD, UPPER_RAD)
        targets.append(target)
        measured = measured + FOLLOWED * (target - measured)
    return np.stack(targets)
