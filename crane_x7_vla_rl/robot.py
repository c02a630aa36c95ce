"""Dimensions of the CRANE-X7: joints, limits, rates, home pose, each with its source.

The simulated model, kinematics, safety limits and message names all use these values.

Sources: [D] rt-net/crane_x7_description, branch ros2 (44a1292), ``urdf/*.xacro``;
[R] rt-net/crane_x7_ros, branch humble-devel, MoveIt and ros2_control configuration.
Lengths in m, angles in rad, masses in kg. Vectors over all joints have the order of `JOINT_NAMES`:
seven arm joints, then the gripper (finger A).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Joint:
    """One revolute joint, with its child link. Source: [D]."""

    name: str
    axis: tuple[float, float, float]
    """Unit axis in the parent link's frame; all joint frames have rpy = 0."""
    origin_m: tuple[float, float, float]
    """Position of the joint in the parent link's frame."""
    lower_rad: float
    upper_rad: float
    effort_nm: float
    mass_kg: float
    """Mass of the child link."""


PREFIX: Final = "crane_x7_"

BASE_PLATE_M: Final = 0.005
"""Height of the mounting plate under the base link. [D]"""
BASE_MASS_KG: Final = 0.388

ARM_JOINTS: Final = (
    Joint(
        PREFIX + "shoulder_fixed_part_pan_joint", (0, 0, 1), (0, 0, 0.036), -2.7402, 2.7402, 10,
        0.253,
    ),
    Joint(
        PREFIX + "shoulder_revolute_part_tilt_joint", (0, -1, 0), (0, 0, 0.064), -1.5708, 1.5708,
        10, 0.136,
    ),
    Joint(
        PREFIX + "upper_arm_revolute_part_twist_joint", (0, 0, 1), (0, 0, 0.065), -2.7402, 2.7402,
        4, 0.321,
    ),
    Joint(
        PREFIX + "upper_arm_revolute_part_rotate_joint", (0, -1, 0), (0, 0, 0.185), -2.7751, 0.0,
        4, 0.222,
    ),
    Joint(
        PREFIX + "lower_arm_fixed_part_joint", (0, 0, 1), (0, 0, 0.121), -2.7402, 2.7402, 4, 0.207,
    ),
    Joint(
        PREFIX + "lower_arm_revolute_part_joint", (0, -1, 0), (0, 0, 0.129), -1.5708, 1.5708, 4,
        0.140,
    ),
    Joint(PREFIX + "wrist_joint", (0, 0, 1), (0, 0, 0.019), -2.9147, 2.9147, 4, 0.121),
)  # fmt: skip
"""Base to wrist; the last one's child link is the gripper base. [D]"""

FINGER_A: Final = Joint(
    PREFIX + "gripper_finger_a_joint", (0, -1, 0), (-0.012, 0, 0.024), -0.0873, 1.5708, 4, 0.0158
)
"""The driven finger, which represents the gripper: 0 closed, larger is more open. [D]"""
FINGER_B: Final = Joint(
    PREFIX + "gripper_finger_b_joint", (0, 1, 0), (0.012, 0, 0.024), -0.0873, 1.5708, 4, 0.0139
)
"""Follows finger A; never commanded. [D]"""

FINGER_LENGTH_M: Final = 0.074
"""Finger joint to fingertip, along z of the gripper base, closed. For the simulated model; measure
it on an arm with other fingertips."""

ARM_JOINT_NAMES: Final = tuple(joint.name for joint in ARM_JOINTS)
GRIPPER_JOINT_NAME: Final = FINGER_A.name
JOINT_NAMES: Final = (*ARM_JOINT_NAMES, GRIPPER_JOINT_NAME)
ARM_DOF: Final = len(ARM_JOINT_NAMES)
DOF: Final = len(JOINT_NAMES)


def _constant(values: list[float]) -> Vector:
    vector = np.array(values, dtype=np.float64)
    vector.setflags(write=False)
    return vector


LOWER_RAD: Final = _constant([joint.lower_rad for joint in (*ARM_JOINTS, FINGER_A)])
"""(8,) position limits."""
UPPER_RAD: Final = _constant([joint.upper_rad for joint in (*ARM_JOINTS, FINGER_A)])
"""(8,) position limits."""
VELOCITY_RAD_S: Final = _constant([4.817] * DOF)
"""(8,) velocity limits. [D]"""
ACCELERATION_RAD_S2: Final = _constant([8.0] * DOF)
"""(8,) acceleration limits: MoveIt's for the arm [R]; it has none for the gripper, which uses the
same."""

HOME_RAD: Final = _constant([0.0, np.pi / 8, 0.0, -5 * np.pi / 8, 0.0, -np.pi / 4, np.pi / 2, 0.0])
"""(8,) usual rest pose, gripper closed. [R]"""

CONTROLLER_HZ: Final = 200
"""Update rate of the ros2_control controllers. [R]"""

CAMERA_IN_GRIPPER_BASE_M: Final = (0.0, 0.0445, 0.034)
"""Position of the RealSense D435 on the gripper base. [D]"""
CAMERA_HORIZONTAL_FOV_RAD: Final = float(np.deg2rad(69.0))
"""Horizontal field of view of the D435's colour camera (69° × 42°, Intel's data sheet)."""
