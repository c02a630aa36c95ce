"""Whether the arm goes where it is sent."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np
import pytest

from crane_x7_remote.inference.following import REST_S, FollowWatch
from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_remote.inference.trajectory import LAG_S, state_at
from crane_x7_vla_rl.robot import HOME_RAD
from crane_x7_vla_rl.types import Array, JointState, Trajectory

ROBOT_S = 1.7e9
TICK_S = 0.1
TRACKING_RAD = 0.15
JOINT = np.eye(8)[0]
Path = Callable[[float], float]
"""Seconds → rad of joint 1 beyond HOME."""


def trajectory(sequence: int, path: Path, now_s: float) -> Trajectory:
    """Return half a second of `path`, at rest at its end."""
    times = np.arange(0.0, 0.5, 0.04)
    position = np.array([path(now_s + t) for t in times])
    speed = np.array([(path(now_s + t + 1e-3) - path(now_s + t - 1e-3)) / 2e-3 for t in times])
    speed[-1] = 0.0
    return Trajectory(
        position_rad=HOME_RAD + np.outer(position, JOINT),
        velocity_rad_s=np.outer(speed, JOINT),
        time_from_start_s=times,
        stamp_s=ROBOT_S + now_s,
        sequence=sequence,
        session="0a1b2c3d",
        valid_s=0.5,
    )


class Arm:
    """Runs the newest trajectory that reached it, with a lag; can be blocked, or fall."""

    def __init__(self, lag_s: float = 0.05) -> None:
        self.running: Trajectory | None = None
        self.at = 0.0
        self.blocked = False
        self.falls_rad_s = 0.0
        self._lag_s = lag_s

    def move(self, now_s: float) -> None:
        """Move on by one tick, to `now_s`."""
        if self.falls_rad_s:
            self.at += self.falls_rad_s * TICK_S
        elif self.running is not None and not self.blocked:
            wanted = float(state_at(self.running, ROBOT_S + now_s)[0][0] - HOME_RAD[0])
            self.at = wanted + (self.at - wanted) * float(np.exp(-TICK_S / self._lag_s))

    @property
    def joints(self) -> JointState:
        return JointState(HOME_RAD + self.at * JOINT, np.zeros(8))


def drive(
    arm: Arm,
    path: Path,
    seconds: float,
    watch: FollowWatch | None = None,
    start_s: float = 0.0,
    heard: Callable[[float], bool] = lambda _: True,
) -> list[tuple[float, Hold]]:
    """Return every hold while the arm is sent along `path` at 10 Hz; as in the loop, a path starts
    from the measured arm when that is off it, or the one before was lost, and nothing is sent while
    the watch holds."""
    watch = watch or FollowWatch(TRACKING_RAD)
    holds, shift, is_lost = [], 0.0, True
    for k in range(round(seconds / TICK_S)):
        now_s = start_s + k * TICK_S
        arm.move(now_s)
        hold = watch.observe(arm.joints, ROBOT_S + now_s)
        if hold is not None:
            holds.append((now_s, hold))
            continue
        lately = [path(now_s - late_s) + shift for late_s in np.linspace(0, LAG_S, 5)]
        is_on_path = min(lately) - TRACKING_RAD <= arm.at <= max(lately) + TRACKING_RAD
        if is_lost or not is_on_path:
            shift = arm.at - path(now_s)
        from_here = lambda at_s, shift=shift: path(at_s) + shift  # noqa: E731
        made = trajectory(next(SEQUENCE), from_here, now_s)
        watch.sent(made)
        is_lost = not heard(now_s)
        if not is_lost:
            watch.heard(made.sequence, made.stamp_s)
            arm.running = made
    return holds


SEQUENCE = count(1)


def swinging(now_s: float) -> float:
    return 2.0 * float(np.sin(1.9 * now_s))


def slow(now_s: float) -> float:
    return 0.05 * now_s


def fine(now_s: float) -> float:
    """A policy whose answers jitter; a servo's play swallows this."""
    return 0.008 * float(np.sin(20 * now_s))


@pytest.mark.parametrize("path", [swinging, slow, fine, lambda _: 0.0])
@pytest.mark.parametrize("lag_s", [0.001, 0.05, 0.2])
def test_an_arm_that_follows_is_driven(path: Path, lag_s: float) -> None:
    assert not drive(Arm(lag_s), path, 60)


def test_play_that_swallows_small_movements_is_no_blockage() -> None:
    arm = Arm()
    arm.blocked = True
    assert not drive(arm, fine, 60)


@pytest.mark.parametrize(("path", "within_s"), [(swinging, 2.0), (slow, 6.0)])
def test_a_blocked_arm_holds_and_says_what_to_look_for(path: Path, within_s: float) -> None:
    arm, watch = Arm(), FollowWatch(TRACKING_RAD)
    assert not drive(arm, path, 5, watch)
    arm.blocked = True
    holds = drive(arm, path, within_s + 1, watch, 5.0)
    assert holds
    at_s, hold = holds[0]
    assert at_s < 5 + within_s
    assert hold.reason is HoldReason.NOT_FOLLOWING
    assert "torque off" in hold.detail
    assert "shoulder_fixed_part_pan" in hold.detail


def test_an_arm_whose_torque_is_off_falls_and_holds_until_it_rests() -> None:
    arm, watch = Arm(), FollowWatch(TRACKING_RAD)
    drive(arm, lambda _: 0.0, 2, watch)
    arm.falls_rad_s = 0.5
    assert drive(arm, lambda _: 0.0, 2, watch, 2.0)
    arm.falls_rad_s = 0.0
    for k in range(40):  # it still falls, slowly
        arm.at += 0.01
        assert watch.observe(arm.joints, ROBOT_S + 4 + 0.1 * k) is not None
    for k in range(1, 30):
        hold = watch.observe(arm.joints, ROBOT_S + 8 + 0.1 * k)
        assert hold is None or 0.1 * k <= REST_S + 0.2


def test_an_arm_that_is_free_again_is_driven_again() -> None:
    arm, watch = Arm(), FollowWatch(TRACKING_RAD)
    arm.blocked = True
    assert drive(arm, swinging, 4, watch)
    arm.blocked = False
    late = drive(arm, swinging, 20, watch, 4.0)
    assert all(at_s < 4 + REST_S + 1.5 for at_s, _ in late)


def test_trajectories_that_never_arrive_are_not_followed_and_that_is_right() -> None:
    assert not drive(Arm(), swinging, 30, heard=lambda now_s: now_s % 3 < 1.5)


def test_a_gap_in_the_joint_states_starts_the_comparison_again() -> None:
    arm, watch = Arm(), FollowWatch(TRACKING_RAD)
    drive(arm, swinging, 3, watch)
    arm.at += 1.0  # moved while nothing was known
    assert not drive(arm, swinging, 1, watch, 5.0)


def test_an_arm_that_others_move_after_the_path_has_ended_is_none_of_our_business() -> None:
    arm, watch = Arm(), FollowWatch(TRACKING_RAD)
    drive(arm, swinging, 3, watch)
    for k in range(100):
        if k < 30:
            arm.move(3 + 0.1 * k)
        else:
            arm.at += 0.05
        assert watch.observe(arm.joints, ROBOT_S + 3 + 0.1 * k) is None


def test_what_was_sent_before_a_restart_does_not_count() -> None:
    arm, watch = Arm(), FollowWatch(TRACKING_RAD)
    drive(arm, swinging, 3, watch)
    watch.restart()
    for k in range(30):
        arm.move(3 + 0.1 * k)
        assert watch.observe(arm.joints, ROBOT_S + 3 + 0.1 * k) is None


def test_the_grippers_stop_at_what_it_holds_is_no_blockage() -> None:
    watch = FollowWatch(TRACKING_RAD)
    for k in range(100):
        now_s = 0.1 * k
        made = trajectory(next(SEQUENCE), lambda _: 0.0, now_s)
        speed: Array = made.velocity_rad_s + np.eye(8)[7] * 0.3
        watch.sent(
            Trajectory(
                made.position_rad, speed, made.time_from_start_s, made.stamp_s,
                made.sequence, made.session, made.valid_s,
            )
        )  # fmt: skip
        watch.heard(made.sequence, made.stamp_s)
        assert watch.observe(JointState(HOME_RAD, np.zeros(8)), ROBOT_S + now_s) is None
