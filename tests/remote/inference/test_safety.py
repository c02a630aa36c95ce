"""Each refusal of inference.safety has its own reason; what passes is inside the limits."""

from __future__ import annotations

import numpy as np
import pytest
from places import ROOT

from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.safety import (
    SafeCommand,
    check_chunk,
    check_frame,
    check_joints,
    check_motion,
)
from crane_x7_vla_rl import robot
from crane_x7_vla_rl.types import ActionChunk, Array, JointState, Trajectory

LIMITS = Limits()
HOME = JointState(robot.HOME_RAD, np.zeros(8))


def _with(position: Array, joint: int, value: float) -> Array:
    changed = np.array(position, dtype=np.float64)
    changed[..., joint] = value
    return changed


def _joints(joint: int, value: float) -> JointState:
    return JointState(_with(robot.HOME_RAD, joint, value), np.zeros(8))


@pytest.mark.parametrize(
    ("age_s", "stamp_s", "any_frame", "reason"),
    [
        (None, 0.0, False, HoldReason.NO_FRAME),
        (None, 0.0, True, HoldReason.NO_NEW_FRAME),
        (0.03, 0.0, True, HoldReason.FRAME_UNSTAMPED),
        (0.03, float("nan"), True, HoldReason.FRAME_UNSTAMPED),
        (0.501, 1.7e9, True, HoldReason.FRAME_STALE),
        (float("nan"), 1.7e9, True, HoldReason.FRAME_STALE),
    ],
)
def test_a_frame_that_is_not_good_holds(
    age_s: float | None, stamp_s: float, any_frame: bool, reason: HoldReason
) -> None:
    hold = check_frame(age_s, stamp_s, any_frame, 0.5)
    assert hold is not None
    assert hold.reason is reason


def test_a_fresh_stamped_frame_passes() -> None:
    assert check_frame(0.499, 1.7e9, True, 0.5) is None


@pytest.mark.parametrize(
    ("joints", "age_s", "reason"),
    [
        (None, 0.0, HoldReason.NO_JOINTS),
        (HOME, 0.501, HoldReason.JOINTS_STALE),
        (HOME, float("nan"), HoldReason.JOINTS_STALE),
        (_joints(3, float("nan")), 0.02, HoldReason.JOINTS_NOT_FINITE),
        (_joints(7, float("inf")), 0.02, HoldReason.JOINTS_NOT_FINITE),
        (JointState(robot.HOME_RAD, np.full(8, np.inf)), 0.02, HoldReason.JOINTS_NOT_FINITE),
        (_joints(3, 0.2), 0.02, HoldReason.JOINTS_OUT_OF_LIMITS),
        (_joints(7, -0.3), 0.02, HoldReason.JOINTS_OUT_OF_LIMITS),
    ],
)
def test_joints_that_are_not_good_hold(
    joints: JointState | None, age_s: float, reason: HoldReason
) -> None:
    hold = check_joints(joints, age_s, LIMITS, 0.5)
    assert hold is not None
    assert hold.reason is reason


def test_unreported_velocities_and_a_joint_a_little_outside_pass() -> None:
    position = _with(robot.HOME_RAD, 3, 0.05)
    assert check_joints(JointState(position, np.full(8, np.nan)), 0.02, LIMITS, 0.5) is None


def _chunk(position: Array) -> ActionChunk:
    return ActionChunk(np.atleast_2d(position), 0.1)


@pytest.mark.parametrize(
    ("chunk", "reason"),
    [
        (None, HoldReason.POLICY_OUTPUT),
        (robot.HOME_RAD, HoldReason.POLICY_OUTPUT),
        ([], HoldReason.POLICY_OUTPUT),
        (_chunk(np.tile(robot.HOME_RAD, (1001, 1))), HoldReason.POLICY_OUTPUT),
        (_chunk(_with(robot.HOME_RAD, 2, float("nan"))), HoldReason.ACTION_NOT_FINITE),
        (_chunk(_with(robot.HOME_RAD, 7, float("-inf"))), HoldReason.ACTION_NOT_FINITE),
        (_chunk(_with(robot.HOME_RAD, 0, 2.77)), HoldReason.JOINT_LIMIT),
        (_chunk(_with(robot.HOME_RAD, 3, 0.03)), HoldReason.JOINT_LIMIT),
        (_chunk(_with(robot.HOME_RAD, 7, 1.6)), HoldReason.GRIPPER_RANGE),
        (_chunk(_with(robot.HOME_RAD, 7, -0.12)), HoldReason.GRIPPER_RANGE),
        (_chunk(_with(robot.HOME_RAD, 0, 1.01)), HoldReason.JUMP),
    ],
)
def test_a_chunk_that_is_not_sane_holds(chunk: object, reason: HoldReason) -> None:
    hold = check_chunk(chunk, HOME, 0.05, LIMITS)
    assert isinstance(hold, Hold)
    assert hold.reason is reason


def test_a_bad_value_in_a_late_step_holds_the_whole_chunk() -> None:
    targets = np.tile(robot.HOME_RAD, (5, 1))
    targets[4, 1] = np.nan
    hold = check_chunk(ActionChunk(targets, 0.1), HOME, 0.05, LIMITS)
    assert isinstance(hold, Hold)
    assert "step 4" in hold.detail


def test_a_target_hardly_outside_is_clamped() -> None:
    command = check_chunk(_chunk(_with(robot.HOME_RAD, 3, 0.015)), HOME, 0.05, LIMITS)
    # the elbow starts at -5π/8, nearer than a jump only by a smaller step
    assert isinstance(command, Hold)
    near = JointState(_with(robot.HOME_RAD, 3, -0.2), np.zeros(8))
    command = check_chunk(_chunk(_with(robot.HOME_RAD, 3, 0.015)), near, 0.05, LIMITS)
    assert isinstance(command, SafeCommand)
    assert command.position_rad[0, 3] == LIMITS.upper_rad[3] < 0.0


def test_only_the_first_target_still_due_can_jump() -> None:
    far, near = _with(robot.HOME_RAD, 0, 1.5), robot.HOME_RAD
    chunk = ActionChunk(np.stack([far, near]), 0.1)
    assert isinstance(check_chunk(chunk, HOME, 0.15, LIMITS), SafeCommand)
    assert isinstance(check_chunk(chunk, HOME, 0.05, LIMITS), Hold)


def test_the_gripper_may_go_all_the_way_at_once() -> None:
    command = check_chunk(_chunk(_with(robot.HOME_RAD, 7, 1.5)), HOME, 0.05, LIMITS)
    assert isinstance(command, SafeCommand)


def test_a_policy_of_goals_may_be_allowed_longer_ways() -> None:
    far = _chunk(_with(robot.HOME_RAD, 0, 1.5))
    assert isinstance(check_chunk(far, HOME, 0.05, Limits(max_jump_rad=1.6)), SafeCommand)


def _trajectory(positions: Array, velocities: Array, spacing_s: float = 0.1) -> Trajectory:
    return Trajectory(
        position_rad=positions,
        velocity_rad_s=velocities,
        time_from_start_s=0.1 + spacing_s * np.arange(len(positions)),
        stamp_s=100.0,
        sequence=0,
        session="0a1b2c3d",
        valid_s=1.0,
    )


REST = np.tile(robot.HOME_RAD, (3, 1))
STILL = np.zeros((3, 8))


def _first_joint(values: list[float]) -> Array:
    table = np.zeros((len(values), 8))
    table[:, 0] = values
    return table


@pytest.mark.parametrize(
    ("positions", "velocities", "reason"),
    [
        (REST, _first_joint([0, 0, 0.1]), HoldReason.NOT_AT_REST),
        (REST + _first_joint([0, np.nan, 0]), STILL, HoldReason.ACTION_NOT_FINITE),
        (REST + _first_joint([0, 0, 0]) + _with(STILL, 3, 2.0), STILL, HoldReason.POSITION),
        (REST + _first_joint([0, 0.5, 1.0]), STILL, HoldReason.VELOCITY),
        (REST + _first_joint([0, 0.02, 0.04]), STILL, HoldReason.ACCELERATION),
        (REST + 0.9 * np.ones((3, 1)) * np.eye(8)[0], STILL, HoldReason.VELOCITY),
        (REST, _first_joint([2.5, 0.0, 0.0]), HoldReason.ACCELERATION),
    ],
)
def test_a_trajectory_that_breaks_a_limit_holds(
    positions: Array, velocities: Array, reason: HoldReason
) -> None:
    hold = check_motion(_trajectory(positions, velocities), HOME, 100.05, LIMITS)
    assert hold is not None
    assert hold.reason is reason


def test_a_velocity_far_from_the_measured_one_holds() -> None:
    slow = _trajectory(REST, STILL)
    moving = JointState(robot.HOME_RAD, _with(np.zeros(8), 1, 3.0))
    hold = check_motion(slow, moving, 100.05, LIMITS)
    assert hold is not None
    assert hold.reason is HoldReason.ACCELERATION


def test_a_trajectory_at_rest_where_the_arm_is_passes() -> None:
    assert check_motion(_trajectory(REST, STILL), HOME, 100.05, LIMITS) is None
    single = _trajectory(REST[:1], STILL[:1])
    assert check_motion(single, HOME, 100.05, LIMITS) is None


def test_every_reason_is_explained_in_the_documentation() -> None:
    text = ROOT.joinpath("docs", "safety.md").read_text()
    assert [reason for reason in HoldReason if f"`{reason}`" not in text] == []
