"""The loop's decisions, tick by tick, on a fake clock and a robot that is only bytes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tick_rig import (
    ROBOT_CLOCK_S,
    TRAVEL_S,
    Rig,
    a_jpeg,
)

from crane_x7_remote.errors import PolicyFailingError
from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_remote.inference.metrics import Distribution
from crane_x7_remote.inference.outgoing import OutgoingTopics
from crane_x7_remote.inference.tick_log import Sent
from crane_x7_remote.rosbridge import messages, protocol
from crane_x7_remote.rosbridge.clock import ClockStep
from crane_x7_remote.rosbridge.frames import EncodedFrame
from crane_x7_remote.rosbridge.joint_watch import FaultKind, JointFault
from crane_x7_remote.rosbridge.messages import StampedJoints
from crane_x7_remote.rosbridge.robot_clocks import ClockReport
from crane_x7_remote.sim_robot.controller import TrajectoryController
from crane_x7_vla_rl import robot
from crane_x7_vla_rl.types import ActionChunk, JointState, Observation


@pytest.fixture
def rig() -> Rig:
    return Rig()


def _raise(error: Exception) -> object:
    raise error


def test_a_frame_becomes_one_bundle_with_all_topics(rig: Rig) -> None:
    sent = rig.tick()
    assert isinstance(sent, Sent)
    arm, trajectory, action, goal = rig.client.published[0]
    assert arm["topic"] == OutgoingTopics().arm
    assert arm["msg"]["joint_names"] == list(robot.ARM_JOINT_NAMES)
    assert trajectory["msg"]["joint_names"] == list(robot.JOINT_NAMES)
    assert trajectory["msg"]["header"]["frame_id"] == "vla/0a1b2c3d/1/500"
    assert len(action["msg"]["data"]) == 8
    assert goal["op"] == "send_action_goal"


def test_a_trajectory_carries_the_stamp_of_its_frame(rig: Rig) -> None:
    sent = rig.tick()
    assert isinstance(sent, Sent)
    assert sent.trajectory.stamp_s == sent.frame.stamp_s
    stamp = rig.client.published[0][0]["msg"]["header"]["stamp"]
    assert stamp["sec"] + stamp["nanosec"] * 1e-9 == pytest.approx(sent.frame.stamp_s, abs=1e-6)


def test_sequence_counts_up_by_one(rig: Rig) -> None:
    rig.tick(3)
    ids = [bundle[0]["msg"]["header"]["frame_id"] for bundle in rig.client.published]
    assert [frame_id.split("/")[2] for frame_id in ids] == ["1", "2", "3"]


def test_a_frame_is_used_once(rig: Rig) -> None:
    rig.tick()
    rig.client.camera_runs = False
    assert rig.reason() is HoldReason.NO_NEW_FRAME
    assert len(rig.policy.observations) == 1


def test_no_frame_at_all_holds(rig: Rig) -> None:
    rig.client.camera_runs = False
    assert rig.reason() is HoldReason.NO_FRAME


def test_stale_frame_holds_by_arrival(rig: Rig) -> None:
    rig.client.latest_frame()
    rig.client.camera_runs = False
    rig.clock.sleep(0.6)
    assert rig.reason() is HoldReason.FRAME_STALE


def test_stale_frame_holds_by_its_stamp(rig: Rig) -> None:
    rig.client.stamp_offset_s -= 0.6
    assert rig.reason() is HoldReason.FRAME_STALE
    assert not rig.policy.observations


def test_an_unstamped_frame_holds(rig: Rig) -> None:
    rig.client._frame = EncodedFrame(a_jpeg(), "jpeg", 0.0, rig.clock.now_s)
    rig.client.camera_runs = False
    assert rig.reason() is HoldReason.FRAME_UNSTAMPED


def test_an_unreadable_frame_holds_and_is_counted(rig: Rig) -> None:
    rig.client.jpeg = a_jpeg()[:200]
    assert rig.reason() is HoldReason.FRAME_UNREADABLE
    assert rig.loop.metrics.counters["refused_frames"] == 1


def test_stale_joints_hold_by_arrival_and_by_stamp(rig: Rig) -> None:
    now_s = rig.clock.now_s
    state = JointState(robot.HOME_RAD, np.zeros(8))
    rig.client.measured = StampedJoints(state, now_s + ROBOT_CLOCK_S, now_s - 1)
    assert rig.reason() is HoldReason.JOINTS_STALE
    rig.client.measured = StampedJoints(state, now_s + ROBOT_CLOCK_S - 1, now_s + 0.1)
    assert rig.reason() is HoldReason.JOINTS_STALE


def test_joints_that_are_not_finite_hold(rig: Rig) -> None:
    state = JointState(np.full(8, np.nan), np.zeros(8))
    rig.client.measured = StampedJoints(state, rig.clock.now_s + ROBOT_CLOCK_S, rig.clock.now_s)
    assert rig.reason() is HoldReason.JOINTS_NOT_FINITE


def test_joints_that_contradict_those_before_hold(rig: Rig) -> None:
    rig.client.fault = JointFault(FaultKind.CONFLICT, "two places", 1e9)
    assert rig.reason() is HoldReason.JOINTS_CONFLICT
    rig.client.fault = JointFault(FaultKind.IMPOSSIBLE, "too fast", 1e9)
    assert rig.reason() is HoldReason.JOINTS_IMPOSSIBLE
    rig.client.fault = None
    assert isinstance(rig.tick(), Sent)


def test_joints_that_become_impossible_while_the_policy_thinks_hold(rig: Rig) -> None:
    def answer(seen: Observation) -> object:
        rig.client.fault = JointFault(FaultKind.IMPOSSIBLE, "too fast", 1e9)
        return rig.policy._further(seen)

    rig.policy.answer = answer
    assert rig.reason() is HoldReason.JOINTS_IMPOSSIBLE
    assert not rig.client.published


def test_clocks_that_differ_hold_before_the_frame_is_called_stale(rig: Rig) -> None:
    rig.client.stamp_offset_s -= 2.0
    rig.client.clock_report = ClockReport(1.7e9, difference_s=-2.0)
    assert rig.reason() is HoldReason.CLOCKS_DIFFER
    assert not rig.policy.observations


def test_a_camera_whose_clock_is_still_unknown_holds(rig: Rig) -> None:
    rig.client.clock_report = ClockReport(1.7e9, difference_s=None, camera_topic="/camera")
    outcome = rig.tick()
    assert isinstance(outcome, Hold)
    assert outcome.reason is HoldReason.CLOCK_UNKNOWN
    assert "/camera" in outcome.detail
    assert not rig.policy.observations


def test_a_camera_without_stamps_is_called_so_and_not_unknown(rig: Rig) -> None:
    rig.client.stamp_offset_s = -1e9
    rig.client.clock_report = ClockReport(1.7e9, difference_s=None)
    assert rig.reason() is HoldReason.FRAME_UNSTAMPED


@pytest.mark.parametrize("ahead_s", [0.01, 0.3, 0.5])
def test_no_trajectory_is_stamped_later_than_the_robots_time(rig: Rig, ahead_s: float) -> None:
    rig.client.stamp_offset_s += ahead_s
    for _ in range(5):
        sent = rig.tick()
        assert isinstance(sent, Sent)
        assert sent.trajectory.stamp_s <= rig.clock.now_s + ROBOT_CLOCK_S
        assert sent.trajectory.stamp_s == pytest.approx(
            sent.frame.arrival_s + ROBOT_CLOCK_S, abs=TRAVEL_S + 2e-3
        )


def test_a_step_of_the_clock_forgets_the_running_path_and_holds_until_it_has_ended(
    rig: Rig,
) -> None:
    rig.tick(3)
    stepped_s = rig.clock.now_s
    rig.client.clock_report = ClockReport(
        stepped_s + ROBOT_CLOCK_S, difference_s=0.0, step=ClockStep(stepped_s, 0.3), steps=1
    )
    assert rig.reason() is HoldReason.CLOCK_STEPPED
    assert rig.loop._planner._running is None
    ends_s = rig.loop._ready.old_path_ends_s
    assert stepped_s < ends_s < stepped_s + 0.5
    while isinstance(rig.tick(), Hold):
        assert rig.clock.now_s < ends_s + 0.2
    assert rig.clock.now_s >= ends_s
    assert isinstance(rig.tick(), Sent)


def test_an_arm_that_does_not_move_where_it_is_sent_holds_and_is_tried_again() -> None:
    rig = Rig()

    def far(seen: Observation) -> object:
        return ActionChunk(seen.joints.position_rad[None] + 0.3 * np.eye(8)[:1], 0.1)

    rig.policy.answer = far
    rig.client.is_blocked = True
    outcomes = [rig.tick() for _ in range(60)]
    holds = [each.reason for each in outcomes if isinstance(each, Hold)]
    assert HoldReason.NOT_FOLLOWING in holds
    first = next(k for k, each in enumerate(outcomes) if isinstance(each, Hold))
    assert first < 20
    assert any(isinstance(each, Sent) for each in outcomes[first:])
    rig.client.is_blocked = False
    rig.policy.answer = rig.policy._further
    rig.tick(20)
    assert all(isinstance(rig.tick(), Sent) for _ in range(30))


def test_a_link_that_is_down_holds(rig: Rig) -> None:
    rig.client.link.connected = False
    assert rig.reason() is HoldReason.LINK_DOWN


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda _: _raise(RuntimeError("boom")), HoldReason.POLICY_RAISED),
        (lambda _: _raise(SystemExit("boom")), HoldReason.POLICY_RAISED),  # type: ignore[arg-type]
        (lambda _: ActionChunk(np.zeros((2, 7)), 0.1), HoldReason.POLICY_RAISED),
        (lambda _: None, HoldReason.POLICY_OUTPUT),
        (lambda _: np.zeros((2, 8)), HoldReason.POLICY_OUTPUT),
        (lambda _: ActionChunk(np.full((2, 8), np.nan), 0.1), HoldReason.ACTION_NOT_FINITE),
        (lambda _: ActionChunk(np.full((2, 8), 9.0), 0.1), HoldReason.JOINT_LIMIT),
        (lambda _: ActionChunk(robot.HOME_RAD[None] + np.eye(8)[:1] * 1.2, 0.1), HoldReason.JUMP),
    ],
)
def test_a_policy_that_misbehaves_holds_and_the_next_tick_drives(
    rig: Rig, answer: Callable[[Observation], object], reason: HoldReason
) -> None:
    rig.policy.answer = answer
    assert rig.reason() is reason
    assert not rig.client.published
    rig.policy.answer = rig.policy._further
    assert isinstance(rig.tick(), Sent)


def test_a_late_prediction_is_thrown_away() -> None:
    rig = Rig(policy_timeout_s=0.05)
    release = threading.Event()
    rig.policy.answer = lambda seen: release.wait(5) and rig.policy._further(seen)
    assert rig.reason() is HoldReason.POLICY_TIMEOUT
    assert rig.reason() is HoldReason.POLICY_BUSY
    release.set()
    while rig.loop._worker.is_busy:
        pass
    rig.policy.answer = rig.policy._further
    sent = rig.tick()
    assert isinstance(sent, Sent)
    assert len(rig.client.published) == 1
    assert rig.policy.observations[-1].time_s == pytest.approx(
        sent.frame.arrival_s - TRAVEL_S, abs=1e-4
    )


def test_a_prediction_that_comes_after_the_validity_holds(rig: Rig) -> None:
    def slow(observation: Observation) -> object:
        rig.clock.sleep(0.45)
        return rig.policy._further(observation)

    rig.policy.answer = slow
    assert rig.reason() is HoldReason.TOO_LATE


def test_a_stall_before_sending_holds_instead_of_letting_the_arm_step(rig: Rig) -> None:
    shape = rig.loop._planner.shape

    def stalled(*arguments: Any) -> object:
        shaped = shape(*arguments)
        rig.clock.sleep(0.15)
        return shaped

    assert isinstance(rig.tick(), Sent)
    rig.loop._planner.shape = stalled  # type: ignore[method-assign, assignment]
    assert rig.reason() is HoldReason.TOO_LATE
    assert len(rig.client.published) == 1
    rig.loop._planner.shape = shape  # type: ignore[method-assign]
    assert isinstance(rig.tick(), Sent)


def test_a_policy_that_fails_for_long_ends_the_loop() -> None:
    rig = Rig(policy_failing_s=2.0)
    rig.policy.answer = lambda _: _raise(RuntimeError("out of memory"))
    rig.tick(15)
    with pytest.raises(PolicyFailingError, match="out of memory"):
        rig.tick(10)


def test_an_instruction_takes_effect_on_the_next_tick(rig: Rig) -> None:
    rig.tick()
    rig.client.instructions = ["pick up the blue cube"]
    rig.tick()
    seen = [observation.instruction for observation in rig.policy.observations]
    assert seen == ["pick up the object", "pick up the blue cube"]


def test_a_dropped_bundle_is_no_running_trajectory(rig: Rig) -> None:
    rig.client.accepts = False
    assert rig.reason() is HoldReason.SEND_DROPPED
    rig.client.accepts = True
    sent = rig.tick()
    assert isinstance(sent, Sent)
    assert sent.trajectory.sequence == 1
    np.testing.assert_allclose(sent.trajectory.position_rad[0], robot.HOME_RAD)


def test_what_the_network_thread_dropped_is_no_running_trajectory(rig: Rig) -> None:
    """The next path begins where the arm is, not where the dropped one would have taken it."""
    first = rig.tick()
    assert isinstance(first, Sent)
    rig.client.drops = True
    dropped = rig.tick()
    assert isinstance(dropped, Sent)
    rig.client.drops = False
    sent = rig.tick()
    assert isinstance(sent, Sent)
    assert sent.trajectory.sequence > dropped.trajectory.sequence
    assert rig.loop._planner._before is None, "it starts from the measured state"


def test_a_path_that_continues_a_dropped_one_is_not_sent(rig: Rig) -> None:
    rig.client.echoes = False
    first = rig.tick()
    assert isinstance(first, Sent)
    shape = rig.loop._planner.shape

    def shaped(*arguments: Any) -> Any:
        found = shape(*arguments)
        rig.loop._peers.withdrawn(first.trajectory.sequence)  # only now
        return found

    rig.loop._planner.shape = shaped  # type: ignore[method-assign, assignment]
    published = len(rig.client.published)
    assert rig.reason() is HoldReason.SEND_DROPPED
    assert len(rig.client.published) == published
    rig.loop._planner.shape = shape  # type: ignore[method-assign]
    assert isinstance(rig.tick(), Sent)


def test_dry_run_publishes_nothing() -> None:
    rig = Rig(dry_run=True)
    assert isinstance(rig.tick(10), Sent)
    rig.loop._come_to_rest()
    assert not rig.client.published
    assert rig.client.listener is None


def test_a_new_link_starts_afresh(rig: Rig) -> None:
    rig.tick(3)
    assert rig.loop._planner._running is not None
    rig.client.link.reconnects += 1
    rig.client.accepts = False
    rig.tick()
    assert rig.loop._planner._running is None
    rig.client.accepts = True
    goals = sum(op["op"] == "send_action_goal" for ops in rig.client.published for op in ops)
    assert isinstance(rig.tick(), Sent)
    assert rig.client.published[-1][-1]["op"] == "send_action_goal"
    assert goals == 1
    assert rig.policy.resets == 1


def _reconnect_during_the_prediction(rig: Rig) -> None:
    def answer(seen: Observation) -> object:
        rig.client.link.reconnects += 1
        return rig.policy._further(seen)

    rig.policy.answer = answer


def test_a_link_that_is_new_after_the_prediction_is_listened_to_first() -> None:
    rig = Rig(listen_s=0.5)
    rig.tick(8)
    published = len(rig.client.published)
    assert published
    _reconnect_during_the_prediction(rig)
    assert rig.reason() is HoldReason.LINK_DOWN
    assert len(rig.client.published) == published
    rig.policy.answer = rig.policy._further
    assert rig.reason() is HoldReason.LISTENING
    assert rig.loop._planner._running is None
    assert isinstance(rig.tick(6), Sent)


def test_nothing_is_sent_over_a_new_link_between_two_ticks_either(rig: Rig) -> None:
    """Another robot may be there: no brake of the old path, none of the gripper's later goals."""
    rig.tick(3)
    published = len(rig.client.published)
    rig.client.link.reconnects += 1
    rig.loop._come_to_rest()
    assert len(rig.client.published) == published
    rig = _closing()
    rig.tick()
    rig.client.link.reconnects += 1
    rig.clock.now_s = rig.loop._gripper.times_s[-1] + 0.01
    rig.loop._send_gripper()
    assert [goal for _, goal in rig.client.goals] == [pytest.approx(0.6)]


def test_a_gripper_goal_is_sent_when_its_target_changes(rig: Rig) -> None:
    rig.tick(3)
    opened = np.append(robot.HOME_RAD[:7], 0.8)
    rig.policy.answer = lambda _: ActionChunk(opened[None], 0.1)
    rig.tick(3)
    goals = [
        operation["args"]["command"]["position"]
        for bundle in rig.client.published
        for operation in bundle
        if operation["op"] == "send_action_goal"
    ]
    assert goals == [pytest.approx(0.0), pytest.approx(0.8)]


CLOSES = np.tile(robot.HOME_RAD, (20, 1))
CLOSES[:4, 7], CLOSES[4:, 7] = 0.6, 0.0


def _closing(**config: Any) -> Rig:
    """Return a loop that predicts once a second: 0.4 s open, then closed, in steps of 0.1 s."""
    rig = Rig(rate_hz=1.0, validity_s=2.0, **config)
    later = np.repeat(CLOSES[-1:], 20, axis=0)
    rig.policy.answer = lambda _: ActionChunk(
        CLOSES if len(rig.policy.observations) == 1 else later, 0.1
    )
    return rig


def test_a_gripper_closes_when_its_step_of_the_chunk_begins() -> None:
    rig = _closing()
    rig.loop.run(duration_s=1.5)
    (opened_s, first), (closed_s, second) = rig.client.goals
    assert (first, second) == (pytest.approx(0.6), pytest.approx(robot.LOWER_RAD[7], abs=0.1))
    stamp = rig.policy.observations[0].time_s
    assert closed_s - stamp == pytest.approx(0.4, abs=0.02)
    assert opened_s < closed_s


def test_a_goal_that_falls_due_while_the_policy_computes_is_sent_then() -> None:
    rig = _closing()
    rig.tick()
    waits_s = [work.after_s for work in rig.loop._meanwhile()]
    assert waits_s == pytest.approx([at - rig.clock.now_s for at in rig.loop._gripper.times_s])
    work = rig.loop._meanwhile()[0].work
    rig.clock.now_s = rig.policy.observations[0].time_s + 0.45
    work()
    assert [goal for _, goal in rig.client.goals] == [pytest.approx(0.6), pytest.approx(0.0)]


def test_the_next_chunk_replaces_the_grippers_later_goals() -> None:
    rig = _closing()
    stays_open = CLOSES.copy()
    stays_open[:, 7] = 0.6
    late = CLOSES.copy()
    late[4:15, 7] = 0.6  # closes 1.5 s after its frame: after the second prediction
    answers = iter([late, stays_open])
    rig.policy.answer = lambda _: ActionChunk(next(answers), 0.1)
    rig.loop.run(duration_s=2.0)
    assert [goal for _, goal in rig.client.goals] == [pytest.approx(0.6)]


def test_a_goal_that_the_client_cannot_take_is_tried_again() -> None:
    rig = _closing()
    publish, refused = rig.client.publish, []

    def busy(operations: Any, *more: Any) -> bool:
        if len(operations) == 1 and len(refused) < 3:
            refused.append(operations)
            return False
        return publish(operations, *more)

    rig.client.publish = busy  # type: ignore[method-assign]
    rig.loop.run(duration_s=1.5)
    assert len(refused) == 3
    assert [goal for _, goal in rig.client.goals] == [pytest.approx(0.6), pytest.approx(0.0)]


def _opening() -> Rig:
    """Return a loop that was told to open the gripper, and from then on wants it closed."""
    rig = Rig()
    rig.policy.answer = lambda _: ActionChunk(np.append(robot.HOME_RAD[:7], 0.8)[None], 0.1)
    rig.tick(2)
    rig.policy.answer = lambda _: ActionChunk(robot.HOME_RAD[None], 0.1)
    return rig


def _goals(rig: Rig) -> list[float]:
    return [goal for _, goal in rig.client.goals]


OPEN, CLOSED = pytest.approx(0.8), pytest.approx(0.0)


def test_a_goal_that_the_network_thread_dropped_is_repeated_at_the_next_tick() -> None:
    rig = _opening()
    rig.client.drops = True
    assert isinstance(rig.tick(), Sent)
    assert _goals(rig) == [OPEN]
    rig.client.drops = False
    rig.tick(3)
    assert _goals(rig) == [OPEN, CLOSED]


def test_a_later_goal_that_the_network_thread_dropped_is_repeated_with_the_next_trajectory() -> (
    None
):
    rig = _closing()
    rig.tick()
    rig.clock.now_s = rig.loop._gripper.times_s[3] + 0.01
    rig.client.drops = True
    rig.loop._send_gripper()
    rig.client.drops = False
    rig.loop._gripper.cancel()
    rig.tick(2)
    assert _goals(rig) == [pytest.approx(0.6), CLOSED]


def _tell_of(rig: Rig, bundle: int, result: bool) -> None:
    goal = rig.client.published[bundle][-1]
    assert rig.client.result_says is not None
    rig.client.result_says(
        protocol.action_result(goal["id"], goal["action"], "refused", 0, result=result)
    )


def test_a_goal_that_was_refused_is_repeated_but_not_at_every_tick() -> None:
    rig = _opening()
    rig.tick()
    _tell_of(rig, -1, result=False)
    rig.tick(9)
    assert _goals(rig) == [OPEN, CLOSED]
    rig.tick(3)
    assert _goals(rig) == [OPEN, CLOSED, CLOSED]
    rig.tick(20)
    assert len(_goals(rig)) == 3


def test_a_goal_that_was_done_or_replaced_is_not_repeated() -> None:
    rig = _opening()
    rig.tick()
    _tell_of(rig, 0, result=False)  # the one before
    _tell_of(rig, -1, result=True)
    assert rig.client.result_says is not None
    rig.client.result_says({"op": "action_result", "id": 5, "result": False})
    rig.tick(20)
    assert _goals(rig) == [OPEN, CLOSED]


@pytest.mark.parametrize("seen_for", [0, 1, 5])
def test_a_goal_that_fell_into_a_stop_is_repeated_after_resume(seen_for: int) -> None:
    """The guard refused it; also if it was resumed before the loop's next tick."""
    rig = _opening()
    rig.tick()
    assert rig.client.guard_says is not None
    rig.client.guard_says(_guard(stopped="pressed by hand"))
    for _ in range(seen_for):
        rig.tick()
    assert _goals(rig) == [OPEN, CLOSED]
    rig.client.guard_says(_guard())
    rig.tick(5)
    assert _goals(rig) == [OPEN, CLOSED, CLOSED]


def test_a_goal_that_fell_into_a_stop_of_which_no_state_came_is_repeated() -> None:
    rig = _opening()
    assert rig.client.guard_says is not None
    rig.client.guard_says(_guard(stops=0))
    rig.tick(2)
    assert _goals(rig) == [OPEN, CLOSED]
    rig.client.guard_says(_guard(stops=1))
    rig.tick(2)
    assert _goals(rig) == [OPEN, CLOSED, CLOSED]


def test_later_goals_end_with_a_stop() -> None:
    """The guard brakes the arm: what its chunk wanted the gripper to do then is not done elsewhere,
    and a goal that the guard refuses does not count as the gripper's."""
    rig = _closing()
    rig.tick()
    assert rig.client.guard_says is not None
    rig.client.guard_says(_guard(stopped="pressed by hand"))
    rig.clock.now_s = rig.loop._gripper.times_s[-1] + 0.01
    rig.loop._send_gripper()
    assert _goals(rig) == [pytest.approx(0.6)]
    rig.client.guard_says(_guard())
    rig.tick(2)
    assert _goals(rig) == [pytest.approx(0.6), CLOSED]


def test_nothing_closes_after_the_loop_has_stopped_or_lost_its_link() -> None:
    rig = _closing()
    rig.loop.run(duration_s=0.2)  # one prediction
    assert rig.loop._gripper.next_s == float("inf")
    rig = _closing()
    rig.tick()
    assert rig.loop._gripper.next_s < rig.clock.now_s + 0.4
    rig.client.link.reconnects += 1
    rig.client.accepts = False
    rig.tick()
    assert rig.loop._gripper.next_s == float("inf")


def test_nothing_is_published_before_the_robots_ros_version_is_known(rig: Rig) -> None:
    rig.client.link.ros_version = None
    rig.client.link.ros_version_doubt = "stamps of both"
    outcome = rig.tick(5)
    assert isinstance(outcome, Hold)
    assert (outcome.reason, outcome.detail) == (HoldReason.ROS_VERSION_UNKNOWN, "stamps of both")
    assert not rig.client.published
    assert not rig.client.advertised
    rig.client.link.ros_version = 2
    assert isinstance(rig.tick(), Sent)


def test_a_version_that_becomes_doubtful_while_the_policy_thinks_holds(rig: Rig) -> None:
    def doubtful(observation: Observation) -> object:
        rig.client.link.ros_version = None
        return rig.policy._further(observation)

    rig.policy.answer = doubtful
    assert rig.reason() is HoldReason.ROS_VERSION_UNKNOWN
    assert not rig.client.published


def test_ros_1_gets_its_own_keys_in_every_time_also_when_braking(rig: Rig) -> None:
    rig.client.link.ros_version = 1
    rig.tick(3)
    rig.loop._come_to_rest()
    assert len(rig.client.published) == 4
    for bundle in rig.client.published:
        for operation in bundle[:2]:
            message = operation["msg"]
            stamps = [point["time_from_start"] for point in message["points"]]
            for stamp in (message["header"]["stamp"], *stamps):
                assert set(stamp) == {"secs", "nsecs"}


def test_the_gripper_of_ros_1_moves_by_the_goal_topic_of_its_action(rig: Rig) -> None:
    rig.client.link.ros_version = 1
    rig.tick(3)
    rig.policy.answer = lambda _: ActionChunk(np.append(robot.HOME_RAD[:7], 0.8)[None], 0.1)
    rig.tick(3)
    topic = "/crane_x7_gripper_controller/gripper_cmd/goal"
    assert rig.client.advertised == {topic: "control_msgs/GripperCommandActionGoal"}
    operations = [operation for bundle in rig.client.published for operation in bundle]
    assert not [operation for operation in operations if operation["op"] != "publish"]
    goals = [operation["msg"] for operation in operations if operation["topic"] == topic]
    commands = [goal["goal"]["command"]["position"] for goal in goals]
    assert commands == [pytest.approx(0.0), pytest.approx(0.8)]
    assert goals[0]["goal_id"] == {"stamp": {"secs": 0, "nsecs": 0}, "id": "vla/0a1b2c3d/1"}
    assert set(goals[0]["header"]["stamp"]) == {"secs", "nsecs"}
    assert set(goals[0]["goal"]["command"]) == {"position", "max_effort"}


def test_a_server_that_knows_no_actions_gets_the_goal_again_by_topic(rig: Rig) -> None:
    rig.tick(2)
    assert not rig.client.advertised
    rig.client.link.unknown_operations = ("send_action_goal",)
    rig.tick(3)
    last = [bundle[-1] for bundle in rig.client.published]
    assert [operation["op"] for operation in last].count("send_action_goal") == 1
    goals = [operation for operation in last if operation.get("topic", "").endswith("/goal")]
    assert len(goals) == 1
    assert set(goals[0]["msg"]["header"]["stamp"]) == {"sec", "nanosec"}


def test_a_new_link_may_lead_to_another_ros(rig: Rig) -> None:
    rig.client.link.ros_version = 1
    rig.tick(2)
    rig.client.advertised.clear()
    rig.client.link.reconnects += 1
    rig.client.link.ros_version = 2
    assert isinstance(rig.tick(), Sent)
    assert not rig.client.advertised
    assert rig.client.published[-1][-1]["op"] == "send_action_goal"
    rig.client.link.reconnects += 1
    rig.client.link.ros_version = 1
    assert isinstance(rig.tick(), Sent)
    assert rig.client.advertised
    assert rig.client.published[-1][-1]["topic"].endswith("/goal")


def test_without_a_gripper_action_nothing_is_advertised_for_it() -> None:
    rig = Rig(topics=OutgoingTopics(gripper_action=""))
    rig.client.link.ros_version = 1
    assert isinstance(rig.tick(3), Sent)
    assert not rig.client.advertised


def test_a_hold_tells_what_the_client_knows_of_its_cause(rig: Rig) -> None:
    rig.client.camera_runs = False
    rig.client.link.no_frame_because = "the camera sends a depth image"
    outcome = rig.tick()
    assert isinstance(outcome, Hold)
    assert outcome.reason is HoldReason.NO_FRAME
    assert outcome.detail.endswith(": the camera sends a depth image")
    rig.client.camera_runs = True
    rig.client.link.no_joints_because = "no message on /joint_states"
    state = JointState(robot.HOME_RAD, np.zeros(8))
    now_s = rig.clock.now_s
    rig.client.measured = StampedJoints(state, now_s + ROBOT_CLOCK_S, now_s - 1)
    outcome = rig.tick()
    assert isinstance(outcome, Hold)
    assert outcome.reason is HoldReason.JOINTS_STALE
    assert "no message on /joint_states" in outcome.detail


def _foreign(session: str) -> dict[str, Any]:
    return {"header": {"frame_id": f"vla/{session}/7/500"}}


def test_a_loop_that_hears_another_waits_until_it_is_silent() -> None:
    rig = Rig(listen_s=1.0, silence_s=2.0)
    rig.tick()
    assert rig.client.listener is not None
    for _ in range(20):
        rig.client.listener(_foreign("ffffffff"))
        outcome = rig.tick()
    assert isinstance(outcome, Hold)
    assert outcome.reason is HoldReason.OTHER_LOOP
    assert not rig.client.published
    assert isinstance(rig.tick(22), Sent)


def test_of_two_driving_loops_the_smaller_name_goes_on() -> None:
    smaller, larger = Rig(session="11111111"), Rig(session="22222222")
    for rig, other in ((smaller, "22222222"), (larger, "11111111")):
        rig.tick(3)
        assert rig.client.listener is not None
        rig.client.listener(_foreign(other))
    assert isinstance(smaller.tick(), Sent)
    assert larger.reason() is HoldReason.OTHER_LOOP


def test_a_trajectory_that_never_came_back_is_no_running_one(rig: Rig) -> None:
    rig.tick(2)
    rig.client.echoes = False
    rig.tick()
    lost = rig.loop._planner._running
    rig.client.camera_runs = False
    rig.tick(8)
    rig.client.camera_runs = True
    rig.client.echoes = True
    rig.client.trajectory = None  # the robot never moved
    sent = rig.tick()
    assert lost is not None
    assert isinstance(sent, Sent)
    np.testing.assert_allclose(sent.trajectory.position_rad[0], robot.HOME_RAD, atol=1e-6)


def test_no_trajectory_is_built_on_one_that_may_arrive_late(rig: Rig) -> None:
    """While one that has not come back may still start, the running path is not known."""
    rig.tick(2)
    rig.client.echoes = False
    assert isinstance(rig.tick(), Sent)
    sequence = len(rig.client.published)
    outcomes = [rig.tick() for _ in range(4)]
    assert [each.reason for each in outcomes if isinstance(each, Hold)] == ["unconfirmed"] * 4
    assert len(rig.client.published) == sequence
    rig.client.echoes = True
    outcomes = [rig.tick() for _ in range(3)]
    assert isinstance(outcomes[-1], Sent)  # it has expired: the arm rests, and is measured


def test_a_trajectory_that_comes_back_late_is_built_on_again(rig: Rig) -> None:
    rig.tick(2)
    rig.client.echoes = False
    assert isinstance(rig.tick(), Sent)
    assert rig.reason() is HoldReason.UNCONFIRMED
    assert rig.client.listener is not None
    rig.client.listener(rig.client.published[-1][1]["msg"])
    sent = rig.tick()
    assert isinstance(sent, Sent)
    assert rig.loop._echoes.delay.lead_s(0.5) > 0.1  # the link is known to be that slow from now on
    assert sent.trajectory.time_from_start_s[0] + sent.trajectory.stamp_s < rig.clock.now_s + (
        ROBOT_CLOCK_S
    )


def _guard(**state: object) -> dict[str, Any]:
    return {"data": json.dumps({"you": 3, "stopped": None} | state)}


def test_a_stopped_guard_holds_with_its_reason_until_it_resumes(rig: Rig) -> None:
    rig.tick()
    assert rig.client.guard_says is not None
    rig.client.guard_says(_guard(stopped="pressed by hand"))
    outcome = rig.tick()
    assert isinstance(outcome, Hold)
    assert outcome.reason is HoldReason.STOPPED
    assert "pressed by hand" in outcome.detail
    rig.client.guard_says(_guard())
    assert isinstance(rig.tick(), Sent)


def test_behind_a_guard_the_lead_is_that_of_a_usual_round_trip(rig: Rig) -> None:
    """What comes late is re-timed beside the robot: stalls of the link cost no reaction."""
    for second in range(10):
        rig.loop._echoes.delay.observe(0.01, float(second))
    rig.loop._echoes.delay.observe(0.15, 10.0)
    sent = rig.tick()
    assert isinstance(sent, Sent)
    rig.tick(3)
    alone_ms = rig.loop.metrics.lead.quantile_ms(0.5)
    rig.loop.metrics.lead = Distribution()
    assert rig.client.guard_says is not None
    rig.client.guard_says(_guard())
    rig.tick(3)
    guarded_ms = rig.loop.metrics.lead.quantile_ms(0.5)
    assert alone_ms is not None
    assert guarded_ms is not None
    assert guarded_ms < 40 < alone_ms


def test_a_guard_that_guards_others_is_not_counted_on(rig: Rig) -> None:
    """Its state is also published on the robot's side, for who reaches rosbridge past it."""
    rig.tick()
    assert rig.client.guard_says is not None
    for message in ({"data": json.dumps({"stopped": "x"})}, {"data": 5}, {}, {"data": "[" * 5000}):
        rig.client.guard_says(message)
    assert isinstance(rig.tick(), Sent)
    assert not rig.loop._echoes.guard.is_there(rig.clock.now_s)


def test_what_the_guard_retimed_is_what_runs(rig: Rig) -> None:
    rig.tick(2)
    rig.client.echoes = False
    sent = rig.tick()
    assert isinstance(sent, Sent)
    assert rig.client.listener is not None
    retimed = json.loads(json.dumps(rig.client.published[-1][1]["msg"]))
    retimed["header"]["frame_id"] += "/retimed"
    for point in retimed["points"]:
        point["positions"][1] += 0.05
    rig.client.listener(retimed)
    rig.tick()
    running = rig.loop._planner._running
    assert running is not None
    assert rig.loop.metrics.counters["retimed"] == 1


def test_a_gripper_that_the_guard_tells_otherwise_does_not_hold_the_loop(rig: Rig) -> None:
    rig.tick(2)
    rig.client.echoes = False
    assert isinstance(rig.tick(), Sent)
    assert rig.client.listener is not None
    retimed = json.loads(json.dumps(rig.client.published[-1][1]["msg"]))
    retimed["header"]["frame_id"] += "/retimed"
    gripper = retimed["joint_names"].index(robot.JOINT_NAMES[-1])
    for number, point in enumerate(retimed["points"]):
        point["positions"][gripper] = 0.3 + 0.02 * number  # with a velocity of 0, as before
        point["velocities"][gripper] = 0.0
    rig.client.listener(retimed)
    outcome = rig.tick()
    assert isinstance(outcome, Sent), outcome
    assert rig.loop.metrics.counters["retimed"] == 1


def test_a_slow_link_is_named_with_a_validity_that_would_do(rig: Rig) -> None:
    rig.client.link.rtt_s = 0.4
    outcome = rig.tick()
    assert isinstance(outcome, Hold)
    assert outcome.reason is HoldReason.TOO_LATE
    assert "link's round trip of 0.40 s needs TRAJECTORY_VALIDITY=0.7" in outcome.detail


def test_a_slow_policy_is_named_with_a_validity_that_would_do(rig: Rig) -> None:
    def slow(observation: Observation) -> object:
        rig.clock.sleep(0.45)
        return rig.policy._further(observation)

    rig.policy.answer = slow
    outcome = rig.tick()
    assert isinstance(outcome, Hold)
    assert "policy, or the camera before it needs TRAJECTORY_VALIDITY=0.8" in outcome.detail


def test_stopping_brakes_the_running_trajectory(rig: Rig) -> None:
    target = robot.HOME_RAD + 0.9 * np.eye(8)[0]
    rig.policy.answer = lambda _: ActionChunk(target[None], 0.1)
    rig.tick(2)
    rig.clock.sleep(0.1)
    rig.loop._come_to_rest()
    brake = rig.client.published[-1][0]["msg"]
    assert not any(brake["points"][-1]["velocities"])
    assert brake["points"][-1]["positions"][0] < target[0]
    assert len(rig.client.published) == 3


@pytest.mark.parametrize("busy_s", [0.0, 0.08, 0.15])
def test_a_brake_for_which_the_socket_is_busy_is_made_anew_and_makes_no_step(
    busy_s: float,
) -> None:
    rig = Rig(validity_s=1.0)
    controller = TrajectoryController(robot.HOME_RAD[:7], rig.clock.now_s + ROBOT_CLOCK_S)
    publish, busy_until_s = rig.client.publish, 0.0
    leaves: list[float] = []

    def deliver(operations: Any, leave_by_s: float | None = None, *more: Any) -> bool:
        if rig.clock.now_s < busy_until_s:
            return False
        assert leave_by_s is not None
        leaves.append(leave_by_s - rig.clock.now_s)
        path = messages.trajectory(operations[0]["msg"])
        controller.accept(path, rig.clock.now_s + ROBOT_CLOCK_S + 0.01)
        return publish(operations, leave_by_s, *more)

    rig.client.publish = deliver  # type: ignore[method-assign, assignment]
    far = ActionChunk(robot.HOME_RAD[None] + 0.9 * np.eye(8)[:1], 0.1)
    rig.policy.answer = lambda _: far
    rig.tick(4)
    rig.clock.sleep(0.03)
    busy_until_s = rig.clock.now_s + busy_s
    rig.loop._come_to_rest()
    assert len(leaves) == 5
    assert 0 < leaves[-1] < 0.1
    path = rig.client.published[-2][0]["msg"]["points"]
    rest = controller.update(rig.clock.now_s + ROBOT_CLOCK_S + 2.0)
    assert rest[0] < path[-1]["positions"][0] - 0.05
    assert controller.report.steps == 0, controller.report
    assert controller.report.velocity_violations == 0, controller.report
    assert controller.report.acceleration_violations == 0, controller.report


def _with_one_under_way(**config: Any) -> Rig:
    """Return a loop whose arm moves, and whose last trajectory has not come back in time."""
    rig = Rig(validity_s=2.0, **config)
    rig.policy.answer = lambda _: ActionChunk(robot.HOME_RAD[None] + 0.9 * np.eye(8)[:1], 0.1)
    rig.tick(2)
    rig.client.echoes = False
    assert isinstance(rig.tick(), Sent)
    rig.clock.sleep(0.2)
    assert rig.loop._peers.overdue_s(rig.clock.now_s) is not None
    return rig


def test_behind_a_guard_the_brake_is_sent_also_when_a_trajectory_did_not_come_back() -> None:
    """The guard refused it, or it comes late: either way the guard re-times the brake."""
    rig = _with_one_under_way()
    assert rig.client.guard_says is not None
    rig.client.guard_says(_guard())
    rig.loop._come_to_rest()
    assert len(rig.client.published) == 4
    assert not any(rig.client.published[-1][0]["msg"]["points"][-1]["velocities"])


def test_at_its_end_the_loop_waits_a_moment_for_a_trajectory_that_is_under_way(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = _with_one_under_way()
    begin_s, sleep = rig.clock.now_s, rig.loop._pause
    rig.loop._come_to_rest()
    assert rig.clock.now_s == begin_s, "between two orders of a trial it does not wait"
    assert len(rig.client.published) == 3

    def pause(seconds: float) -> object:
        if rig.clock.now_s > begin_s + 0.2 and rig.loop._peers.overdue_s(rig.clock.now_s):
            assert rig.client.listener is not None
            rig.client.listener(rig.client.published[-1][1]["msg"])
        return sleep(seconds)

    rig.loop._pause = pause
    rig.loop.stop()
    rig.loop.run()
    assert rig.clock.now_s == pytest.approx(begin_s + 0.2, abs=0.02)
    assert len(rig.client.published) == 4
    assert "unconfirmed" not in caplog.text
    rig = _with_one_under_way()
    rig.loop.stop()
    rig.loop.run()
    assert len(rig.client.published) == 3
    assert "could not send the braking trajectory, unconfirmed" in caplog.text


def test_a_brake_that_the_network_thread_drops_is_a_warning(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.tick(2)
    rig.client.drops = True
    rig.loop._come_to_rest()
    assert "the braking trajectory could not leave in time" in caplog.text


def test_ticks_keep_the_asked_rate_and_count_what_they_skip() -> None:
    rig = Rig(rate_hz=30.0)
    rig.loop.run(duration_s=20.0)
    assert rig.loop.metrics.counters["skipped_ticks"] == 0
    rate = rig.loop.metrics.snapshot()["trajectory_rate_hz"]
    assert rate == pytest.approx(30.0, rel=0.001)


def test_a_slow_policy_skips_deadlines_and_drives_as_fast_as_it_can(rig: Rig) -> None:
    def slow(observation: Observation) -> object:
        rig.clock.sleep(0.25)
        return rig.policy._further(observation)

    rig.policy.answer = slow
    rig.loop.run(duration_s=9.0)
    counters = rig.loop.metrics.counters
    assert counters["trajectories"] == pytest.approx(36, abs=1)
    assert counters["skipped_ticks"] == pytest.approx(54, abs=2)


def test_the_phase_settles_just_before_the_frames(rig: Rig) -> None:
    rig.tick(30)
    outcome = rig.tick()
    assert isinstance(outcome, Sent)
    assert outcome.at_s - outcome.frame.arrival_s < 0.002


def test_a_change_of_state_is_logged_once(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="crane_x7_remote.inference")
    rig.tick(5)
    rig.client.link.connected = False
    rig.tick(5)
    rig.client.link.connected = True
    rig.tick(5)
    lines = [record.message for record in caplog.records]
    assert sum("link_down" in line for line in lines) == 1
    assert sum("driving" in line for line in lines) == 1
    assert rig.loop.metrics.holds["link_down"] == 5


def test_warm_up_shows_the_policy_made_up_pictures_and_lets_it_forget_each(rig: Rig) -> None:
    rig.loop.warm_up()
    assert 2 <= len(rig.policy.observations) <= 4
    assert rig.policy.resets == len(rig.policy.observations)
    assert rig.loop.metrics.warm_up_s is not None
