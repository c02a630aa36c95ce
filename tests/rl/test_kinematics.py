"""Kinematics: geometry by hand, round trips, limits, and Pinocchio as the independent library.

Pinocchio (the build that SAPIEN ships) parses the generated URDF independently; its poses have
single precision.
"""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from crane_x7_vla_rl import kinematics
from crane_x7_vla_rl.kinematics import UnreachableError
from crane_x7_vla_rl.robot import (
    ARM_DOF,
    FINGER_B,
    HOME_RAD,
    JOINT_NAMES,
    LOWER_RAD,
    UPPER_RAD,
)

LOWER, UPPER = LOWER_RAD[:ARM_DOF], UPPER_RAD[:ARM_DOF]
HAND = 0
"""Link of the `pinocchio` fixture; the fingers are 1 and 2, as in `link_frames` after the hand."""


@pytest.fixture(scope="module")
def pinocchio() -> Any:
    """The URDF in Pinocchio; joints in the order of JOINT_NAMES, finger B last."""
    from sapien.wrapper.pinocchio_model import PinocchioModel

    from crane_x7_vla_rl.sim import model

    loaded = PinocchioModel(model.urdf(), [0.0, 0.0, -9.81])
    loaded.set_joint_order([*JOINT_NAMES, FINGER_B.name])
    loaded.set_link_order([model.GRIPPER_BASE_LINK, *model.FINGER_LINKS])
    return loaded


def all_joints(arm: np.ndarray, gripper: float = 0.0) -> np.ndarray:
    return np.concatenate([arm, [gripper, gripper]])


def their_frame(pinocchio: Any, link: int, joints: np.ndarray) -> np.ndarray:
    pinocchio.compute_forward_kinematics(joints)
    return np.asarray(pinocchio.get_link_pose(link).to_transformation_matrix(), dtype=np.float64)


def their_tool(pinocchio: Any, arm: np.ndarray) -> np.ndarray:
    frame = their_frame(pinocchio, HAND, all_joints(arm))
    frame[:3, 3] += kinematics.TOOL_M * frame[:3, 2]
    return frame


def test_frames_of_hand_and_fingers_are_pinocchios(pinocchio: Any) -> None:
    rng = np.random.default_rng(4)
    for joints in rng.uniform(LOWER_RAD, UPPER_RAD, (100, 8)):
        ours = kinematics.link_frames(joints)[ARM_DOF:]
        for link, frame in enumerate(ours):
            theirs = their_frame(pinocchio, link, all_joints(joints[:ARM_DOF], joints[ARM_DOF]))
            np.testing.assert_allclose(frame, theirs, atol=1e-6)


def test_jacobian_is_pinocchios(pinocchio: Any) -> None:
    rng = np.random.default_rng(5)
    for arm in rng.uniform(LOWER, UPPER, (100, ARM_DOF)):
        pinocchio.compute_full_jacobian(all_joints(arm))
        at_origin = pinocchio.get_link_jacobian(HAND, local=False)[:, :ARM_DOF]
        turning = at_origin[3:]
        tool = kinematics.tool_frame(arm)[:3, 3]
        theirs = np.vstack([at_origin[:3] + np.cross(turning, tool, axis=0), turning])
        np.testing.assert_allclose(kinematics.jacobian(arm), theirs, atol=1e-9)


def test_pinocchio_finds_the_tool_where_inverse_was_asked_to_hold_it(pinocchio: Any) -> None:
    rng = np.random.default_rng(6)
    for x, y, yaw in rng.uniform([0.17, -0.14, 0.0], [0.29, 0.14, np.pi], (30, 3)):
        wanted = kinematics.tool_frame(kinematics.reach((x, y, 0.05), yaw, lean_rad=0.1))
        theirs = their_tool(pinocchio, kinematics.inverse(wanted, HOME_RAD))
        assert np.linalg.norm(theirs[:3, 3] - wanted[:3, 3]) < 2e-4
        np.testing.assert_allclose(theirs[:3, :3], wanted[:3, :3], atol=2e-3)


def test_joints_that_pinocchio_finds_hold_the_tool_where_it_was_asked(pinocchio: Any) -> None:
    import sapien

    rng = np.random.default_rng(7)
    moving = np.array([1] * ARM_DOF + [0, 0])
    for x, y, yaw in rng.uniform([0.17, -0.14, 0.0], [0.29, 0.14, np.pi], (30, 3)):
        arm = kinematics.reach((x, y, 0.05), yaw)
        hand = kinematics.link_frames(arm)[ARM_DOF]
        joints, success, _ = pinocchio.compute_inverse_kinematics(
            HAND, sapien.Pose(hand), all_joints(HOME_RAD[:ARM_DOF]), moving, damp=1e-4
        )
        assert success
        found = kinematics.tool_frame(joints[:ARM_DOF])
        np.testing.assert_allclose(found, kinematics.tool_frame(arm), atol=5e-4)


def test_the_urdf_that_pinocchio_reads_carries_the_limits() -> None:
    from crane_x7_vla_rl.sim import model

    joints = {joint.get("name"): joint for joint in ET.fromstring(model.urdf()).iter("joint")}
    for name, lower, upper in zip(JOINT_NAMES, LOWER_RAD, UPPER_RAD, strict=True):
        limit = joints[name].find("limit")
        assert limit is not None
        assert float(limit.get("lower", "nan")) == pytest.approx(lower)
        assert float(limit.get("upper", "nan")) == pytest.approx(upper)


def test_upright_arm_stacks_all_origins() -> None:
    frame = kinematics.tool_frame(np.zeros(7))
    height = 0.005 + 0.036 + 0.064 + 0.065 + 0.185 + 0.121 + 0.129 + 0.019 + kinematics.TOOL_M
    np.testing.assert_allclose(frame[:3, 3], [0, 0, height], atol=1e-12)
    np.testing.assert_allclose(frame[:3, :3], np.eye(3), atol=1e-12)


def test_home_points_forward_and_down() -> None:
    frame = kinematics.tool_frame(HOME_RAD)
    np.testing.assert_allclose(frame[:3, 2], [np.sqrt(0.5), 0, -np.sqrt(0.5)], atol=1e-9)
    assert frame[0, 3] > 0.2
    assert kinematics.opening_yaw(HOME_RAD) == pytest.approx(np.pi / 2)


def test_jacobian_matches_finite_differences() -> None:
    rng = np.random.default_rng(1)
    for arm in rng.uniform(LOWER, UPPER, (10, ARM_DOF)):
        frame, analytic = kinematics.tool_frame(arm), kinematics.jacobian(arm)
        for joint in range(ARM_DOF):
            moved = arm.copy()
            moved[joint] += 1e-6
            change = kinematics._pose_error(frame, kinematics.tool_frame(moved)) / 1e-6
            np.testing.assert_allclose(analytic[:, joint], change, atol=1e-4)


@pytest.mark.parametrize("z_m", [0.015, 0.1, 0.17])
def test_reach_from_above_lands_where_asked(z_m: float) -> None:
    rng = np.random.default_rng(2)
    for x, y, yaw in rng.uniform([0.16, -0.15, -np.pi], [0.30, 0.15, np.pi], (100, 3)):
        arm = kinematics.reach((x, y, z_m), yaw)
        frame = kinematics.tool_frame(arm)
        np.testing.assert_allclose(frame[:3, 3], [x, y, z_m], atol=1e-9)
        np.testing.assert_allclose(frame[:3, 2], [0, 0, -1], atol=1e-9)
        missing = (kinematics.opening_yaw(arm) - yaw + np.pi / 2) % np.pi - np.pi / 2
        assert missing == pytest.approx(0, abs=1e-9)
        assert (arm >= LOWER).all()
        assert (arm <= UPPER).all()


def test_leaning_tool_leans_outwards() -> None:
    arm = kinematics.reach((0.3, 0.0, 0.05), np.pi / 2, lean_rad=0.4)
    frame = kinematics.tool_frame(arm)
    np.testing.assert_allclose(frame[:3, 3], [0.3, 0, 0.05], atol=1e-9)
    np.testing.assert_allclose(frame[:3, 2], [np.sin(0.4), 0, -np.cos(0.4)], atol=1e-9)


@pytest.mark.parametrize(
    ("point", "reason"),
    [
        ((0.9, 0.0, 0.02), "spans"),
        ((-0.2, -0.01, 0.02), "pan_joint"),
        ((0.01, 0.0, 0.10), "lower_arm_revolute_part_joint"),
        ((np.nan, 0.0, 0.02), "finite"),
    ],
)
def test_out_of_reach_says_what_stops_the_arm(
    point: tuple[float, float, float], reason: str
) -> None:
    with pytest.raises(UnreachableError, match=reason):
        kinematics.reach(point, 0.0)


def test_inverse_finds_random_poses_within_limits() -> None:
    rng = np.random.default_rng(3)
    margin = 0.1
    solved = 0
    for arm in rng.uniform(LOWER + margin, UPPER - margin, (50, ARM_DOF)):
        wanted = kinematics.tool_frame(arm)
        start = np.clip(arm + rng.normal(0, 0.2, ARM_DOF), LOWER, UPPER)
        try:
            found = kinematics.inverse(wanted, start)
        except UnreachableError:
            continue
        solved += 1
        frame = kinematics.tool_frame(found)
        assert np.linalg.norm(frame[:3, 3] - wanted[:3, 3]) < 1e-4
        assert np.trace(frame[:3, :3].T @ wanted[:3, :3]) > 3 - 1e-5
        assert (found >= LOWER).all()
        assert (found <= UPPER).all()
    assert solved >= 48


def test_inverse_agrees_with_the_closed_form() -> None:
    wanted = kinematics.tool_frame(kinematics.reach((0.25, 0.1, 0.05), 0.3))
    found = kinematics.inverse(wanted, HOME_RAD)
    np.testing.assert_allclose(kinematics.tool_frame(found), wanted, atol=2e-3)


def test_inverse_out_of_reach_raises() -> None:
    wanted = np.eye(4)
    wanted[:3, 3] = [1.5, 0, 0.2]
    with pytest.raises(UnreachableError, match="remain"):
        kinematics.inverse(wanted, HOME_RAD)
