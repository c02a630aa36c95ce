"""Joint states that cannot be, and the real movements that must never be taken for such."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest

from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.safety import check_joints
from crane_x7_remote.rosbridge import messages, protocol
from crane_x7_remote.rosbridge.inbox import Inbox, IncomingTopics
from crane_x7_remote.rosbridge.joint_watch import AGREE_S, FaultKind, JointFault, JointWatch
from crane_x7_vla_rl.robot import FINGER_B, HOME_RAD, JOINT_NAMES
from crane_x7_vla_rl.types import Array, JointState

JOINTS = "/joint_states"
ROBOT_S = 1.7e9
LAYOUT = (JOINT_NAMES, True, False)
Motion = Callable[[float], Array]


def watched(
    motion: Motion,
    seconds: float = 10.0,
    hz: float = 200.0,
    *,
    velocity: Callable[[Motion, float], Array] | None = None,
    noise_rad: float = 0.0015,
    jitter_s: float = 0.0,
    delay: Callable[[float], float] = lambda _: 0.004,
) -> JointFault | None:
    """Return the first fault found in `motion` as one publisher sends it."""
    watch, random = JointWatch(JOINTS), np.random.default_rng(0)
    arrival_s = 0.0
    for k in range(round(seconds * hz)):
        now_s = k / hz
        position = motion(now_s) + random.uniform(-noise_rad, noise_rad, 8)
        speed = (velocity or true_velocity)(motion, now_s)
        arrival_s = max(arrival_s, now_s + delay(now_s))
        measured_s = min(arrival_s, now_s + random.uniform(-jitter_s, jitter_s))
        watch.take(JointState(position, speed), measured_s, arrival_s, LAYOUT, True)
        if (fault := watch.fault(arrival_s)) is not None:
            return fault
    return None


def at_home(seconds: float) -> JointWatch:
    """Return a watch that has seen an arm at rest."""
    watch = JointWatch(JOINTS)
    for k in range(round(seconds * 200)):
        watch.take(JointState(HOME_RAD, np.zeros(8)), k / 200, k / 200, LAYOUT, True)
    return watch


def true_velocity(motion: Motion, now_s: float) -> Array:
    return np.asarray((motion(now_s + 1e-3) - motion(now_s - 1e-3)) / 2e-3)


def still(_: float) -> Array:
    return HOME_RAD.copy()


def swinging(now_s: float) -> Array:
    """Joint 1 swings as fast as its limits of 4.817 rad/s and 8 rad/s² allow."""
    return HOME_RAD + np.eye(8)[0] * 2.7 * np.sin(1.72 * now_s)


def shaking(now_s: float) -> Array:
    return HOME_RAD + np.eye(8)[6] * 0.05 * np.sin(12.6 * now_s)


def snapping(now_s: float) -> Array:
    """The gripper's fingers slip off what they held."""
    return HOME_RAD + np.eye(8)[7] * (0.8 if int(now_s * 3) % 2 else 0.0)


@pytest.mark.parametrize("motion", [still, swinging, shaking, snapping])
@pytest.mark.parametrize("hz", [5.0, 30.0, 60.0, 200.0])
def test_a_real_arm_is_believed(motion: Motion, hz: float) -> None:
    assert watched(motion, hz=hz) is None


@pytest.mark.parametrize("hz", [5.0, 60.0, 200.0])
def test_stalls_and_bursts_of_the_link_are_no_faults(hz: float) -> None:
    late = lambda now_s: 0.004 + max(0.0, 0.9 - now_s % 2.1)  # noqa: E731
    assert watched(swinging, 60, hz, delay=late) is None


@pytest.mark.parametrize("hz", [60.0, 200.0])
def test_jittering_stamps_are_no_faults(hz: float) -> None:
    assert watched(swinging, 30, hz, jitter_s=0.1) is None


def test_velocities_that_are_not_reported_are_no_faults() -> None:
    assert watched(swinging, velocity=lambda *_: np.full(8, np.nan)) is None


def test_velocities_that_are_filtered_are_no_faults() -> None:
    late = lambda motion, now_s: true_velocity(motion, now_s - 0.1)  # noqa: E731
    assert watched(swinging, velocity=late) is None


@pytest.mark.parametrize("hz", [5.0, 10.0])
def test_velocities_of_few_messages_say_nothing(hz: float) -> None:
    assert watched(swinging, hz=hz, velocity=lambda *_: np.zeros(8)) is None


def test_velocities_read_at_the_end_of_a_servos_steps_are_no_faults() -> None:
    low = lambda motion, now_s: 0.4 * true_velocity(motion, now_s)  # noqa: E731
    assert watched(swinging, 60, velocity=low) is None


def test_an_arm_that_was_moved_while_nothing_came_is_believed() -> None:
    watch = at_home(2)
    watch.take(JointState(HOME_RAD + 0.9, np.zeros(8)), 9.0, 9.0, LAYOUT, True)
    assert watch.fault(9.0) is None


@pytest.mark.parametrize("hz", [5.0, 30.0, 200.0])
@pytest.mark.parametrize("other_hz", [1.0, 10.0, 200.0])
def test_a_second_publisher_with_other_values_is_found(hz: float, other_hz: float) -> None:
    watch = JointWatch(JOINTS)
    ours = [(k / hz, HOME_RAD) for k in range(round(4 * hz))]
    others = [(0.001 + k / other_hz, np.zeros(8)) for k in range(round(4 * other_hz))]
    acted_on_zeros = []
    for now_s, position in sorted(ours + others, key=lambda each: each[0]):
        watch.take(JointState(position, np.full(8, np.nan)), now_s, now_s, LAYOUT, True)
        if not position.any() and now_s > 0.5:
            acted_on_zeros.append(watch.fault(now_s) is None)
    assert acted_on_zeros
    assert not any(acted_on_zeros)
    fault = watch.fault(4.0)
    assert fault is not None
    assert "ros2 topic info -v /joint_states" in fault.detail


def test_a_second_publisher_that_is_near_is_found_by_its_alternation() -> None:
    watch = JointWatch(JOINTS)
    for k in range(20):
        position = HOME_RAD + (0.1 if k % 2 else 0.0)
        watch.take(JointState(position, np.full(8, np.nan)), k * 0.02, k * 0.02, LAYOUT, True)
    fault = watch.fault(0.4)
    assert fault is not None
    assert fault.kind is FaultKind.CONFLICT
    assert "alternate" in fault.detail


def test_a_second_publisher_of_the_same_values_is_found_by_its_layout() -> None:
    watch = JointWatch(JOINTS)
    for k in range(40):
        layout = LAYOUT if k % 10 else (JOINT_NAMES[::-1], False, False)
        watch.take(JointState(HOME_RAD, np.zeros(8)), k * 0.01, k * 0.01, layout, True)
    fault = watch.fault(0.4)
    assert fault is not None
    assert fault.kind is FaultKind.CONFLICT
    assert "layouts" in fault.detail


def test_a_publisher_that_is_replaced_by_another_is_believed() -> None:
    watch = JointWatch(JOINTS)
    for k in range(400):
        layout = LAYOUT if k < 200 else (JOINT_NAMES[::-1], False, False)
        watch.take(JointState(HOME_RAD, np.zeros(8)), k * 0.01, k * 0.01, layout, True)
        assert watch.fault(k * 0.01) is None


@pytest.mark.parametrize(
    "velocity",
    [
        pytest.param(lambda *_: np.zeros(8), id="always zero"),
        pytest.param(lambda motion, now_s: -true_velocity(motion, now_s), id="wrong sign"),
        pytest.param(lambda motion, now_s: 57.3 * true_velocity(motion, now_s), id="degrees"),
    ],
)
@pytest.mark.parametrize("hz", [30.0, 60.0, 200.0])
def test_velocities_that_contradict_the_movement_are_found(
    velocity: Callable[[Motion, float], Array], hz: float
) -> None:
    fault = watched(swinging, hz=hz, velocity=velocity)
    assert fault is not None
    assert fault.kind is FaultKind.CONFLICT
    assert "velocities" in fault.detail


def test_an_arm_that_claims_to_move_and_stays_is_found() -> None:
    fault = watched(still, velocity=lambda *_: np.full(8, 1.0))
    assert fault is not None
    assert "contradict" in fault.detail


def test_one_wrong_reading_holds_until_states_agree_again() -> None:
    watch = at_home(2)
    watch.take(JointState(HOME_RAD + 0.5, np.zeros(8)), 2.0, 2.0, LAYOUT, True)
    for k in range(1, 300):
        now_s = 2.0 + 0.005 * k
        watch.take(JointState(HOME_RAD, np.zeros(8)), now_s, now_s, LAYOUT, True)
        fault = watch.fault(now_s)
        assert (fault is None) == (now_s >= 2.005 + AGREE_S)
        assert fault is None or fault.kind is FaultKind.IMPOSSIBLE


def test_wrong_readings_that_come_again_are_forgiven_later_each_time() -> None:
    watch, held_s, now_s = JointWatch(JOINTS), 0.0, 0.0
    for k in range(200 * 60):
        now_s = k * 0.005
        position = HOME_RAD + (0.5 if k % 600 == 599 else 0.0)  # once in 3 s
        watch.take(JointState(position, np.zeros(8)), now_s, now_s, LAYOUT, True)
        held_s += 0.005 * (watch.fault(now_s) is not None)
    assert held_s > 50


# --- through the inbox ---------------------------------------------------------------------------


def inbox() -> Inbox:
    topics = IncomingTopics("/camera", JOINTS, None)
    return Inbox(topics, 10**7, adapts_throttle=False, on_throttle=lambda _: None)


def take(box: Inbox, names: tuple[str, ...], position: Array, now_s: float) -> None:
    message = messages.joint_state_to_ros(names, position, np.zeros(len(position)), ROBOT_S + now_s)
    box.take(protocol.encode_json(protocol.publish(JOINTS, message)), now_s)


def verdict(box: Inbox, now_s: float) -> Hold | None:
    joints = box.joints
    return check_joints(
        None if joints is None else joints.state,
        0.0 if joints is None else now_s - joints.arrival_s,
        Limits(),
        0.5,
        fault=box.joint_fault(now_s),
    )


def test_home_and_zeros_in_turn_8_ms_apart_are_never_acted_on() -> None:
    box = inbox()
    take(box, JOINT_NAMES, HOME_RAD, 0.0)
    for k in range(1, 500):
        now_s = 0.008 * k
        take(box, JOINT_NAMES, np.zeros(8) if k % 2 else HOME_RAD, now_s)
        hold = verdict(box, now_s)
        assert hold is not None
        assert hold.reason in (HoldReason.JOINTS_IMPOSSIBLE, HoldReason.JOINTS_CONFLICT)
        assert "ros2 topic info -v /joint_states" in hold.detail
    for k in range(500, 1000):
        now_s = 0.008 * k
        take(box, JOINT_NAMES, HOME_RAD, now_s)
    assert verdict(box, now_s) is None


@pytest.mark.parametrize("off_s", [-3600.0, -0.3, 0.3, 3600.0])
def test_a_second_publisher_on_another_clock_is_found(off_s: float) -> None:
    box = inbox()
    for k in range(400):
        now_s = 0.01 * k
        take(box, JOINT_NAMES, HOME_RAD, now_s)
        message = messages.joint_state_to_ros(
            JOINT_NAMES, np.zeros(8), np.zeros(8), ROBOT_S + now_s + off_s
        )
        box.take(protocol.encode_json(protocol.publish(JOINTS, message)), now_s + 0.002)
        assert k == 0 or verdict(box, now_s + 0.002) is not None


def test_foreign_joint_states_are_no_reason_to_hold_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    box = inbox()
    names = (*JOINT_NAMES, FINGER_B.name)
    with caplog.at_level(logging.WARNING):
        for k in range(300):
            now_s = k / 30
            take(box, names, np.append(HOME_RAD, 0.0), now_s)
            take(box, ("wheel_left", "wheel_right"), np.array([k, k]) / 3, now_s + 0.01)
            take(box, (f"caster_{k}",), np.array([0.1 * k]), now_s + 0.011)
            assert verdict(box, now_s + 0.012) is None
    complaints = [record for record in caplog.records if "message" in record.getMessage()]
    assert len(complaints) == 1
    assert "wheel_left" in complaints[0].getMessage()
    assert JOINTS in complaints[0].getMessage()
    assert box.refused["message"] == 600


def test_a_hold_for_joints_says_what_came_instead() -> None:
    box = inbox()
    take(box, ("wheel_left", "wheel_right"), np.zeros(2), 1.0)
    because = box.refusal(JOINTS)
    assert because is not None
    assert "wheel_left" in because
    take(box, JOINT_NAMES, HOME_RAD, 1.2)
    assert box.refusal(JOINTS) is None
    take(box, ("wheel_left", "wheel_right"), np.zeros(2), 2.0)
    because = box.refusal(JOINTS)
    assert because is not None
    assert "wheel_left" in because
