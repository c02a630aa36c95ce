"""Kinematics: geometry by hand, round trips, limits."""

from __future__ import annotations

import numpy as np
import pytest

from crane_x7_vla_rl import kinematics
from crane_x7_vla_rl.kinematics import UnreachableError
from crane_x7_vla_rl.robot import ARM_DOF, HOME_RAD, LOWER_RAD, UPPER_RAD

LOWER, UPPER = LOWER_RAD[:ARM_DOF], UPPER_RAD[:ARM_DOF]


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
    with pytest.raises(UnreachableError, match="missing"):
        kinematics.inverse(wanted, HOME_RAD)
