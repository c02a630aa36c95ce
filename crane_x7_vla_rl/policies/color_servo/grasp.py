"""How the colour servo grasps: a spot → arm joints above it; a cube → direction of the fingers.

Positions in m in the world frame of `camera`; the tool point is that of `kinematics`.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from crane_x7_vla_rl import kinematics
from crane_x7_vla_rl.kinematics import UnreachableError
from crane_x7_vla_rl.policies.color_servo.memory import SceneMemory
from crane_x7_vla_rl.policies.color_servo.motion import JointGoal
from crane_x7_vla_rl.policies.color_servo.vision import CubeSight
from crane_x7_vla_rl.types import Array

TIP_CLEARANCE_M: Final = 0.03
"""From the middle of an open fingertip to the centre of a cube that it must not hit."""
LEANS_RAD: Final = (0.0, 0.25, -0.25, 0.5, -0.5)
"""Tilts that are tried in this order if a tool that points straight down is out of reach."""


def above(
    spot: Array, height_m: float, yaw_rad: float, gripper_rad: float, speed: float = 1.0
) -> JointGoal:
    """Return the joints that hold the tool `height_m` above `spot` (3,), as upright as possible.

    Raises UnreachableError.
    """
    point = spot + np.array([0.0, 0.0, height_m])  # (3,)
    for lean in LEANS_RAD[:-1]:
        try:
            arm = kinematics.reach(point, yaw_rad, lean_rad=lean)  # (7,)
        except UnreachableError:
            continue
        return JointGoal(np.append(arm, gripper_rad), speed)
    arm = kinematics.reach(point, yaw_rad, lean_rad=LEANS_RAD[-1])
    return JointGoal(np.append(arm, gripper_rad), speed)


def choose_yaw(
    cube: CubeSight, scene: SceneMemory, colour: str, kept: float | None, misses: int
) -> float:
    """Return along which of the cube's two directions the fingers close.

    Best is across the camera's view, where the cube stays visible between the fingers, and away
    from cubes other than that of `colour`; each miss switches to the other direction. A `kept`
    choice does not change.
    """
    turned = (cube.yaw_rad, cube.yaw_rad + np.pi / 2)
    if kept is not None:
        return min(turned, key=lambda yaw: abs(float(np.sin(yaw - kept))))

    def cost(yaw: float) -> float:
        direction = np.array([np.cos(yaw), np.sin(yaw)])  # (2,)
        tips = (cube.position_m[:2] + side * direction for side in (-0.045, 0.045))
        hits = sum(scene.clearance_m(tip, but=colour) < TIP_CLEARANCE_M for tip in tips)
        return abs(float(direction[0])) + 3 * hits

    return sorted(turned, key=cost)[misses % 2]
