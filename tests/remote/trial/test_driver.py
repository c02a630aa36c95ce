"""The trial's loop on a real link: whoever drives, a person's order holds within a moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from guard_rig import RunningGuard
from loop_rig import FaultyRobot, SwingingPolicy, wait_until

from crane_x7_remote.guard.core import CoreConfig, GuardCore
from crane_x7_remote.guard.rules import STOP_TOPIC
from crane_x7_remote.inference.config import LoopConfig
from crane_x7_remote.inference.feed import Tick
from crane_x7_remote.inference.hold import Hold
from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.outgoing import OutgoingTopics
from crane_x7_remote.rosbridge.client import RosbridgeClient
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_remote.sim_robot.session import GoalKey
from crane_x7_remote.trial.attempt import TickWatch
from crane_x7_remote.trial.driver import TrialLoop
from crane_x7_remote.trial.moves import HomeMove, LeaderMove
from crane_x7_vla_rl.robot import ARM_DOF, HOME_RAD
from crane_x7_vla_rl.types import Observation


class Trial:
    """A trial's loop on its own thread, through a real guard."""

    def __init__(self, robot: FaultyRobot) -> None:
        self.robot = robot
        self.guard = RunningGuard(robot.port, core=GuardCore(CoreConfig()))
        self.policy = SwingingPolicy()
        self.ticks: list[Tick] = []
        self.goals: list[float] = []
        """Of the gripper, as the robot got them."""
        start = robot.start_goal

        def start_goal(key: GoalKey, action_type: str, args: dict[str, Any]) -> None:
            self.goals.append(args["command"]["position"])
            start(key, action_type, args)

        robot.start_goal = start_goal  # type: ignore[method-assign]

    def __enter__(self) -> Trial:
        self.guard.__enter__()
        link = ClientConfig("127.0.0.1", self.guard.port, advertise=OutgoingTopics().published)
        self.client = RosbridgeClient(link)
        self.client.start()
        config = LoopConfig("0a1b2c3d", rate_hz=20.0, listen_s=0.3)
        self.loop = TrialLoop(
            self.client, self.policy, config, Limits(), time.monotonic, observe=self.ticks.append
        )
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.stop()
        self.thread.join(10)
        self.client.close()
        self.guard.__exit__(None, None, None)
        assert not self.thread.is_alive()

    def wait_driving(self) -> None:
        wanted = self.loop.metrics.counters["trajectories"] + 5
        wait_until(
            lambda: self.loop.metrics.counters["trajectories"] >= wanted,
            15, f"driving; {dict(self.loop.metrics.holds)}",
        )  # fmt: skip

    def speed(self) -> float:
        """The arm's present speed, rad/s."""
        at = self._target()
        time.sleep(0.05)
        return float(np.abs(self._target() - at).max() / 0.05)

    def _target(self) -> np.ndarray:
        controller = self.robot._controller
        assert controller is not None
        with self.robot._lock:
            return controller.update(self.robot.time_s()).copy()

    def wait_rest(self, within_s: float) -> None:
        wait_until(lambda: self.speed() < 1e-3, within_s, "at rest")

    def robot_joints(self) -> np.ndarray:
        """The measured joints, (8,)."""
        joints = self.client.joints()
        assert joints is not None
        return joints.state.position_rad.copy()

    @property
    def refused(self) -> dict[str, int]:
        found: dict[str, int] = self.guard.state()["refused"]
        return found


@pytest.fixture
def trial() -> Iterator[Trial]:
    with FaultyRobot() as robot, Trial(robot) as running:
        yield running


def test_the_loop_rests_until_something_is_ordered(trial: Trial) -> None:
    wait_until(lambda: trial.loop.metrics.holds["paused"] > 20, 10, "paused")
    assert trial.robot.moved == 0


def test_an_order_brakes_the_arm_and_the_next_one_continues(trial: Trial) -> None:
    for begins in (True, False, False):
        trial.loop.drive(begins)
        trial.wait_driving()
        trial.loop.rest("a test")
        trial.wait_rest(1.0)
        moved = trial.robot.moved
        time.sleep(0.5)
        assert trial.robot.moved == moved
    assert not trial.refused.keys() & {"sequence", "driver", "jump", "not_at_rest"}, trial.refused
    trial.robot.assert_nothing_bad_arrived(refused=("expired",))


def test_a_policy_that_hangs_does_not_delay_the_brake(trial: Trial) -> None:
    trial.loop.drive(begins=True)
    trial.wait_driving()
    release = threading.Event()
    trial.policy.fault = lambda seen: release.wait(5) and trial.policy.swing(seen)
    time.sleep(0.2)
    ordered_s = time.monotonic()
    trial.loop.rest("a test")
    wait_until(lambda: trial.loop.metrics.state == "paused", 0.5, "paused")
    assert time.monotonic() - ordered_s < 0.5
    trial.wait_rest(1.0)
    trial.policy.fault = None
    release.set()
    trial.loop.drive(begins=False)
    trial.wait_driving()


def test_a_stop_that_ends_at_once_still_waits_for_the_next_order(trial: Trial) -> None:
    """Whoever orders is asleep: the arm does not move again by the guard's `resume` alone."""
    trial.loop.drive(begins=True)
    trial.wait_driving()
    assert trial.loop.stopped_by_guard is None
    with trial.guard.connect("/stop") as person:
        person.publish(STOP_TOPIC, {"data": True})
        person.publish(STOP_TOPIC, {"data": False})
    wait_until(lambda: trial.loop.stopped_by_guard is not None, 5, "the loop rests")
    wait_until(lambda: trial.guard.state()["stopped"] is None, 5, "the guard is resumed")
    trial.wait_rest(2.0)
    moved = trial.robot.moved
    time.sleep(0.5)
    assert trial.robot.moved == moved
    assert trial.loop.metrics.state == "paused"
    trial.loop.drive(begins=False)
    assert trial.loop.stopped_by_guard is None
    trial.wait_driving()


def test_a_stop_that_ends_while_no_state_comes_still_waits_for_the_next_order(
    trial: Trial,
) -> None:
    """The link is down meanwhile: a person has stopped the guard, reached in and resumed."""
    trial.loop.drive(begins=True)
    trial.wait_driving()
    guard = trial.loop._echoes.guard
    guard.hear = lambda *_: None  # type: ignore[method-assign]
    with trial.guard.connect("/stop") as person:
        person.publish(STOP_TOPIC, {"data": True})
        person.publish(STOP_TOPIC, {"data": False})
    wait_until(lambda: trial.guard.state()["stops"] == 1, 5, "the guard has stopped")
    guard.link_came_up()
    was_there = trial.loop.guard_is_there, trial.loop.guard_was_there
    del guard.hear
    wait_until(lambda: trial.loop.stopped_by_guard is not None, 5, "the loop rests")
    assert was_there == (False, True), "Space stops a guard that is silent now"
    trial.wait_rest(2.0)
    trial.loop.drive(begins=False)
    trial.wait_driving()
    assert trial.loop.stopped_by_guard is None


def test_a_stop_during_a_prediction_is_not_followed_by_its_answer(trial: Trial) -> None:
    trial.loop.drive(begins=True)
    trial.wait_driving()
    begun, release = threading.Event(), threading.Event()

    def slow(seen: Observation) -> object:
        begun.set()
        release.wait(5)
        return trial.policy.swing(seen)

    trial.policy.fault = slow
    assert begun.wait(5)
    sent = trial.loop.metrics.counters["trajectories"]
    stops = trial.loop._echoes.guard.stops
    with trial.guard.connect("/stop") as person:
        person.publish(STOP_TOPIC, {"data": True})
        person.publish(STOP_TOPIC, {"data": False})
    wait_until(lambda: trial.loop._echoes.guard.stops > stops, 5, "the stop is heard")
    trial.policy.fault = None
    release.set()
    wait_until(lambda: trial.loop.stopped_by_guard is not None, 5, "the loop rests")
    assert trial.loop.metrics.counters["trajectories"] == sent


def test_home_is_reached_from_where_the_policy_left_the_arm(trial: Trial) -> None:
    trial.loop.drive(begins=True)
    trial.wait_driving()
    time.sleep(0.5)
    home = np.append(HOME_RAD[:ARM_DOF], 0.5)
    home[2] += 0.3  # where the policy never is
    move = HomeMove(home, None)
    trial.loop.move(move)
    time.sleep(0.2)  # a prediction that had begun
    asked = len(trial.policy.instructions)
    wait_until(
        lambda: (joints := trial.client.joints()) and move.is_there(joints.state.position_rad),
        20, "home",
    )  # fmt: skip
    assert len(trial.policy.instructions) == asked, "the policy drove, and not the move"
    trial.loop.rest("home")
    trial.wait_rest(1.0)


class Leader:
    """A leader arm at one place."""

    def __init__(self, at: np.ndarray) -> None:
        self.at = at

    def pose(self) -> tuple[np.ndarray, float]:
        return self.at, 0.01


def test_on_the_way_home_the_gripper_keeps_what_a_takeover_grasped(trial: Trial) -> None:
    watch = TickWatch()
    trial.loop._observe = lambda tick: watch.note(tick, trial.loop.mode)
    trial.loop.drive(begins=True)
    trial.wait_driving()
    wait_until(lambda: (watch.gripper_rad or 0) > 0.2, 15, "the policy opens the gripper")
    closed = trial.robot_joints()
    closed[ARM_DOF] = 0.05
    trial.loop.move(LeaderMove(Leader(closed)), intervention=True)
    wait_until(lambda: trial.robot_joints()[ARM_DOF] < 0.08, 15, "the leader closes it")
    trial.loop.rest("judged")
    home = np.append(closed[:ARM_DOF], 0.6)
    home[0] += 0.5
    trial.goals.clear()
    trial.loop.move(HomeMove(home, watch.gripper_rad))
    wait_until(lambda: np.abs(trial.robot_joints() - home)[:ARM_DOF].max() < 0.3, 15, "on its way")
    assert max(trial.goals, default=0.0) < 0.1
    trial.loop.rest("by hand", by_hand=True)
    wait_until(lambda: watch.gripper_rad is None, 5, "a person's hands may have moved it")


def test_who_drives_is_marked_in_every_tick(trial: Trial) -> None:
    trial.loop.drive(begins=True)
    trial.wait_driving()
    trial.loop.rest("by hand", by_hand=True)
    wait_until(lambda: trial.ticks[-1].intervention, 5, "a tick of a person")
    by_hand = trial.ticks[-1]
    assert isinstance(by_hand.outcome, Hold)
    assert by_hand.frame is not None  # the recording continues
    trial.loop.drive(begins=False)
    wait_until(lambda: not trial.ticks[-1].intervention, 5, "a tick of the policy")


def test_orders_from_many_threads_leave_the_loop_usable(trial: Trial) -> None:
    def give() -> None:
        for _ in range(100):
            trial.loop.drive(begins=False)
            trial.loop.rest("a test")

    threads = [threading.Thread(target=give) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trial.loop.drive(begins=True)
    trial.wait_driving()
