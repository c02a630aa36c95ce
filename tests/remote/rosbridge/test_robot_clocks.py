"""Camera and joint states, each with its own clock: the report on both."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_remote.inference.link.clock_check import answered_stamp_s, check_clocks
from crane_x7_remote.rosbridge.clock import SETTLING
from crane_x7_remote.rosbridge.robot_clocks import RobotClocks

CAMERA, JOINTS = "/camera/color/image_raw/compressed", "/joint_states"
ROBOT_S = 1.7e9
"""The robot's clock minus ours."""
Ahead = Callable[[float], float]


class Robot:
    """Stamps and sends frames and joint states, each on its clock; they arrive 4 ms later."""

    def __init__(self, camera_hz: float = 30.0, joints_hz: float = 200.0) -> None:
        self.clocks = RobotClocks(CAMERA, JOINTS)
        self.now_s = 0.0
        self.holds: list[tuple[float, Hold | None]] = []
        """What `check_clocks` said behind each frame."""
        self._periods = {CAMERA: 1 / camera_hz, JOINTS: 1 / joints_hz}
        self._sent = {CAMERA: 0, JOINTS: 0}

    def run(
        self,
        seconds: float,
        camera: Ahead = lambda _: 0.0,
        joints: Ahead = lambda _: 0.0,
        unstamped: bool = False,
    ) -> None:
        end_s = self.now_s + seconds
        while True:
            due = {topic: self._sent[topic] * self._periods[topic] for topic in self._sent}
            topic = min(due, key=lambda name: due[name])
            sent_s = due[topic]
            if sent_s >= end_s:
                self.now_s = end_s
                return
            self._sent[topic] += 1
            self.now_s = sent_s + 0.004
            if topic == JOINTS:
                stamp_s = 0.0 if unstamped else ROBOT_S + sent_s + joints(sent_s)
                self.clocks.take_joints(stamp_s, self.now_s)
            else:
                self.clocks.take_frame(ROBOT_S + sent_s + camera(sent_s), self.now_s)
                self.holds.append((self.now_s, self.hold()))

    def hold(self) -> Hold | None:
        """As the loop asks, with a path that ends half a second behind a step."""
        report = self.clocks.report(self.now_s)
        path_ends_s = 0.0 if report.step is None else report.step.at_s + 0.5
        return check_clocks(report, self.now_s, 0.5, path_ends_s)

    def reasons(self, since_s: float = 1.0) -> set[HoldReason]:
        return {hold.reason for at_s, hold in self.holds if hold is not None and at_s >= since_s}

    def holds_since(self, since_s: float) -> list[float]:
        return [at_s for at_s, hold in self.holds if hold is not None and at_s >= since_s]


def constant(by_s: float) -> Ahead:
    return lambda _: by_s


def step(by_s: float, at_s: float = 3.0) -> Ahead:
    return lambda sent_s: by_s if sent_s >= at_s else 0.0


@pytest.mark.parametrize("camera_hz", [1.0, 30.0, 120.0])
@pytest.mark.parametrize("joints_hz", [5.0, 200.0])
def test_one_clock_is_driven_with(camera_hz: float, joints_hz: float) -> None:
    robot = Robot(camera_hz, joints_hz)
    robot.run(10)
    assert not robot.reasons(since_s=max(1.5, SETTLING / camera_hz))
    robot_s = robot.clocks.report(robot.now_s).robot_s
    assert robot_s == pytest.approx(ROBOT_S + robot.now_s - 0.004, abs=2e-3)


@pytest.mark.parametrize("by_s", [0.6, 2.0, 37.0, 3600.0, 5e7, -0.6, -2.0, -37.0, -5e7])
def test_a_camera_on_another_clock_holds_and_names_both(by_s: float) -> None:
    robot = Robot()
    robot.run(5, camera=constant(by_s))
    assert robot.reasons() == {HoldReason.CLOCKS_DIFFER}
    hold = robot.hold()
    assert hold is not None
    for words in (
        CAMERA,
        JOINTS,
        f"{abs(by_s):.3f} s",
        "chrony",
        "ahead" if by_s > 0 else "behind",
    ):
        assert words in hold.detail
    assert ("TAI" in hold.detail) == (abs(by_s) == 37.0)


@pytest.mark.parametrize("by_s", [0.6, 2.0, 37.0, -0.6, -2.0, -37.0])
@pytest.mark.parametrize("camera_hz", [1.0, 10.0, 30.0])
@pytest.mark.parametrize("joints_hz", [5.0, 200.0])
def test_a_camera_on_another_clock_is_never_driven_with(
    by_s: float, camera_hz: float, joints_hz: float
) -> None:
    """Not even with its first frames, while the joint states' clock is known and its own is not."""
    robot = Robot(camera_hz, joints_hz)
    robot.run(2.5)
    robot.clocks.reset()  # the same after a reconnect
    robot.run(7.5, camera=constant(by_s))
    held = dict(robot.holds)
    robot = Robot(camera_hz, joints_hz)
    robot.run(8, camera=constant(by_s))
    assert all(hold is not None for hold in dict(robot.holds).values())
    assert all(hold is not None for at_s, hold in held.items() if at_s > 2.5)
    assert robot.holds[-1][1] is not None
    assert robot.holds[-1][1].reason is HoldReason.CLOCKS_DIFFER


@pytest.mark.parametrize("by_s", [2.0, -2.0])
def test_a_wrong_stamp_that_ends_the_settling_is_not_used(by_s: float) -> None:
    """The frame whose stamp completes the first estimate can be the wrong one."""
    robot = Robot(camera_hz=10.0)
    last_s = (SETTLING - 1) * 0.1
    robot.run(1, camera=lambda sent_s: by_s if abs(sent_s - last_s) < 0.01 else 0.0)
    index = SETTLING - 1
    hold = robot.holds[index][1]
    is_old = by_s < 0 and robot.clocks.camera.age_s(ROBOT_S + last_s + by_s, last_s) > 1.9
    assert is_old or (hold is not None and hold.reason is HoldReason.CLOCK_STEPPED)
    assert robot.holds[index + 1][1] is None


def test_a_report_never_shows_half_of_a_change() -> None:
    """A second doubtful frame is being taken: for a moment nothing says that the first one was."""
    robot = Robot()
    robot.run(2)
    clocks, inside, done = robot.clocks, threading.Event(), threading.Event()
    arrivals = iter((2.1, 2.14))
    take = lambda: clocks.take_frame(ROBOT_S + (at_s := next(arrivals)) + 2.0, at_s)  # noqa: E731
    take()
    observe = clocks.camera.observe

    def stopped_halfway(stamp_s: float, arrival_s: float) -> bool:
        clocks.camera.doubt = None
        inside.set()
        done.wait(0.3)
        return observe(stamp_s, arrival_s)

    clocks.camera.observe = stopped_halfway  # type: ignore[method-assign]
    network = threading.Thread(target=take)
    network.start()
    assert inside.wait(5)
    report = clocks.report(2.15)
    done.set()
    network.join(5)
    hold = check_clocks(report, 2.15, 0.5, 0.0)
    assert hold is not None
    assert hold.reason is HoldReason.CLOCK_STEPPED


@pytest.mark.parametrize("by_s", [2.0, -2.0])
def test_the_robots_time_is_that_of_the_joint_states(by_s: float) -> None:
    robot = Robot()
    robot.run(5, camera=constant(by_s))
    robot_s = robot.clocks.report(robot.now_s).robot_s
    assert robot_s == pytest.approx(ROBOT_S + robot.now_s, abs=0.01)


def test_a_frame_on_a_clock_ahead_is_as_old_as_it_is() -> None:
    robot = Robot()
    robot.run(5, camera=constant(2.0))
    stamp_s = ROBOT_S + 2.0 + robot.now_s
    assert robot.clocks.camera.age_s(stamp_s, robot.now_s + 30) == pytest.approx(30, abs=0.02)


@pytest.mark.parametrize("by_s", [0.3, -0.3])
def test_clocks_nearer_than_the_frames_may_be_old_are_driven_with(by_s: float) -> None:
    robot = Robot()
    robot.run(5, camera=constant(by_s))
    assert not robot.reasons()


@pytest.mark.parametrize("by_s", [0.3, 20.0, 3600.0, -0.2, -0.45, -3600.0])
@pytest.mark.parametrize("rates", [(30.0, 200.0), (10.0, 5.0), (1.0, 200.0), (30.0, 5.0)])
def test_a_step_holds_at_once_until_the_path_has_ended(
    by_s: float, rates: tuple[float, float]
) -> None:
    robot = Robot(*rates)
    at_s = max(3.0, (SETTLING + 1) / rates[0])  # both clocks are known before they are set
    robot.run(at_s + 4, step(by_s, at_s), step(by_s, at_s))
    assert robot.reasons(at_s - 0.9) <= {HoldReason.CLOCK_STEPPED, HoldReason.CLOCKS_DIFFER}
    report = robot.clocks.report(robot.now_s)
    assert report.robot_s == pytest.approx(ROBOT_S + robot.now_s + by_s, abs=0.01)
    assert report.difference_s == pytest.approx(0.0, abs=0.01)
    assert report.steps == 1
    assert report.step is not None
    assert at_s < report.step.at_s < at_s + 1.0
    held = robot.holds_since(at_s)
    lasts_s = 0.5 + min(max(-by_s, 0.0), 0.5)
    assert not held or held[0] < at_s + 0.3 if rates[0] > 1 else True
    assert robot.hold() is None
    assert all(held_s < at_s + 1.0 + lasts_s + 1.0 for held_s in held)


@pytest.mark.parametrize("by_s", [0.45, 20.0, -0.45, -20.0])
def test_a_wrong_stamp_costs_one_frame(by_s: float) -> None:
    robot = Robot()
    robot.run(6, camera=lambda sent_s: by_s if 3.0 <= sent_s < 3.03 else 0.0)
    assert len(robot.holds_since(1.0)) == 1
    robot = Robot()
    robot.run(6, joints=lambda sent_s: by_s if 3.0 <= sent_s < 3.004 else 0.0)
    assert len(robot.holds_since(1.0)) <= 1


@pytest.mark.parametrize("rate", [0.3, 0.6, 0.9])
def test_a_simulation_slower_than_real_time_is_named(rate: float) -> None:
    robot = Robot()
    slow = lambda sent_s: (rate - 1) * sent_s  # noqa: E731
    robot.run(5, slow, slow)
    hold = robot.hold()
    assert hold is not None
    assert hold.reason is HoldReason.CLOCK_RATE
    assert f"{rate:.2f} s per second" in hold.detail
    assert "slower" in hold.detail
    robot.clocks.reset()  # a reconnect does not make it faster
    robot.run(2, slow, slow)
    assert robot.clocks.rate is not None
    at_s = robot.now_s
    robot.run(10, constant(slow(at_s)), constant(slow(at_s)))
    assert robot.hold() is None


def test_unstamped_joint_states_hold_and_say_so() -> None:
    robot = Robot()
    robot.run(3, unstamped=True)
    hold = robot.hold()
    assert hold is not None
    assert hold.reason is HoldReason.CLOCK_UNKNOWN
    assert JOINTS in hold.detail
    assert "header.stamp" in hold.detail


def test_a_trajectory_carries_its_frames_stamp_while_the_clocks_agree() -> None:
    assert answered_stamp_s(ROBOT_S - 0.05, 0.05, ROBOT_S) == ROBOT_S - 0.05
    assert answered_stamp_s(ROBOT_S - 0.25, 0.05, ROBOT_S) == ROBOT_S - 0.25


@pytest.mark.parametrize("ahead_s", [0.0, 0.051, 0.3, 40.0])
@pytest.mark.parametrize("age_s", [0.0, 0.05, 0.4])
def test_no_trajectory_is_stamped_later_than_its_frame_was_taken(
    ahead_s: float, age_s: float
) -> None:
    stamp_s = answered_stamp_s(ROBOT_S - age_s + ahead_s, age_s, ROBOT_S)
    assert stamp_s == pytest.approx(ROBOT_S - age_s, abs=1.1e-3)
    assert stamp_s <= ROBOT_S
