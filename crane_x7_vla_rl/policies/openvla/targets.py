"""Meaning of OpenVLA's actions on a CRANE-X7: actions → joint targets.

It depends on the number of dimensions in the statistics under the chosen key:

- 8: absolute joint targets in rad, seven arm joints and the gripper (0 closed), as recorded on a
  CRANE-X7. The gripper is clipped to its limits: if its mask leaves it unscaled, the model can only
  output −1…1.
- 7: a step of the tool, as in Bridge and most of Open X-Embodiment: x, y, z in m along the robot
  base's axes, roll, pitch, yaw in rad about them, and the gripper from 0 (closed) to 1 (open).
  Inverse kinematics converts it to targets; a step out of reach raises, and the loop holds.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from crane_x7_vla_rl import kinematics
from crane_x7_vla_rl.policies.openvla.keys import TOOL_DIMENSIONS
from crane_x7_vla_rl.robot import ARM_DOF, DOF, LOWER_RAD, UPPER_RAD
from crane_x7_vla_rl.types import Array

DIMENSIONS: Final = (TOOL_DIMENSIONS, DOF)
GRIPPER_OPEN_RAD: Final = 0.6
"""Gripper angle for the 1 of an end-effector data set: about 8 cm between the fingertips."""


def joint_targets(actions: Array, measured_rad: Array) -> Array:
    """Return (T, 8) rad for successive actions (T, 7 or 8); `measured_rad` (8,): measured joints.

    Steps of the tool add up, each from the end of the one before. Raises UnreachableError.
    """
    if actions.shape[1] == TOOL_DIMENSIONS:
        return _follow_steps(actions, measured_rad)
    targets = actions.copy()
    targets[:, ARM_DOF] = np.clip(targets[:, ARM_DOF], LOWER_RAD[ARM_DOF], UPPER_RAD[ARM_DOF])
    return targets


def _follow_steps(actions: Array, measured_rad: Array) -> Array:
    frame, near, targets = kinematics.tool_frame(measured_rad), measured_rad, []
    for action in actions:
        frame[:3, 3] += action[:3]
        frame[:3, :3] = _rotation(*action[3:6]) @ frame[:3, :3]
        gripper = np.clip(action[6], 0.0, 1.0) * GRIPPER_OPEN_RAD
        near = np.append(kinematics.inverse(frame, near), gripper)
        targets.append(near)
    return np.stack(targets)


def _rotation(roll: float, pitch: float, yaw: float) -> Array:
    """Return (3, 3): first roll about x, then pitch about y, then yaw about z, with fixed axes."""
    (sr, sp, sy), (cr, cp, cy) = np.sin([roll, pitch, yaw]), np.cos([roll, pitch, yaw])
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )
