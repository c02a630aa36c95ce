"""The guard's core, fed with messages and times: what passes, what is re-timed, what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from crane_x7_remote.guard import reading
from crane_x7_remote.guard.core import CoreConfig, GuardCore, Send, Tell
from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.safety import SafeCommand
from crane_x7_remote.inference.trajectory import Timing, build, flown, state_at
from crane_x7_remote.rosbridge import messages
from crane_x7_vla_rl.robot import ARM_DOF, ARM_JOINT_NAMES, HOME_RAD, JOINT_NAMES
from crane_x7_vla_rl.types import Array, JointState, Trajectory

ROBOT_S = 1_700_000_000.0
"""The robot's clock minus the guard's."""
LIMITS = Limits()
ARM = CoreConfig().arm_topic
SESSION = "0a1b2c3d"
CLIENT = 1


def _path(message: Mapping[str, Any], robot_s: float) -> Trajectory:
    """Return what a controller runs for a message on the arm's topic, on the guard's clock."""
    parsed = messages.trajectory(message)
    columns = [parsed.joint_names.index(name) for name in ARM_JOINT_NAMES]
    assert parsed.velocity_rad_s is not None
    gripper = np.zeros((len(parsed.time_from_start_s), 1))
    return Trajectory(
        np.hstack([parsed.position_rad[:, columns], gripper]),
        np.hstack([parsed.velocity_rad_s[:, columns], gripper]),
        parsed.time_from_start_s,
        parsed.stamp_s - robot_s,
        0,
        "",
        1.0,
    )


class Rig:
    """A guard, joint states at 100 Hz that follow what was passed on, and a loop beside it."""

    def __init__(self, **config: Any) -> None:
        self.core = GuardCore(CoreConfig(**config))
        self.now_s = 50.0
        self.robot_s = ROBOT_S
        self.path: Trajectory | None = None
        """What the controller runs, on the guard's clock."""
        self.echoes = True
        self.sent: list[Any] = []
        self.told: list[str] = []
        self.running: Trajectory | None = None
        """What the loop takes for running, on the robot's clock."""
        self.sequence = 0
        self.pass_time(1.0)

    def position(self) -> tuple[Array, Array]:
        if self.path is None:
            return HOME_RAD, np.zeros(8)
        return state_at(self.path, self.now_s)

    def do(self, outputs: list[Any]) -> None:
        for output in outputs:
            if isinstance(output, Tell):
                self.told.append(output.text)
                continue
            self.sent.append(output)
            if output.topic == ARM:
                self._run(output.message)
                if self.echoes:
                    self.do(self.core.hear_echo(output.message, self.now_s))

    def _run(self, message: Any) -> None:
        """Let the controller start it, as ros2_control does: from where it is at this moment."""
        path = _path(message, self.robot_s)
        self.path = path if self.path is None else flown(self.path, path)

    def joints(self) -> None:
        position, velocity = self.position()
        message = messages.joint_state_to_ros(
            JOINT_NAMES, position, velocity, self.now_s + self.robot_s
        )
        self.do(self.core.hear_joints(message, self.now_s + 0.0002))

    def pass_time(self, seconds: float, joints: bool = True) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s - 1e-9:
            self.now_s += 0.01
            if joints:
                self.joints()
            while self.core.wake_s is not None and self.now_s >= self.core.wake_s:
                self.do(self.core.wake(self.now_s))

    def trajectory(
        self,
        offset_rad: float = 0.4,
        age_s: float = 0.03,
        lead_s: float = 0.06,
        valid_s: float = 0.5,
        **changes: Any,
    ) -> dict[str, Any]:
        """What a loop would send now: joint 1 moves `offset_rad` away from home."""
        robot_s = self.now_s + self.robot_s
        position, velocity = self.position()
        timing = Timing(robot_s - age_s, robot_s, lead_s, valid_s, robot_s)
        targets = np.tile(HOME_RAD, (5, 1))
        targets[:, 0] += offset_rad
        command = SafeCommand(targets, 0.1 * np.arange(1, 6))
        self.sequence += 1
        measured = JointState(position, velocity)
        self.newest = build(
            command, measured, self.running, timing, LIMITS,
            sequence=self.sequence, session=changes.pop("session", SESSION),
        )  # fmt: skip
        message = messages.to_ros(self.newest, ARM_JOINT_NAMES)
        return message | changes

    def drive(self, **options: Any) -> list[Any]:
        """Send one trajectory, let 0.1 s pass, and return what left for the robot."""
        count = len(self.sent)
        self.do(self.core.take_trajectory(CLIENT, self.trajectory(**options), self.now_s))
        self.pass_time(0.1)
        for each in self.sent[count:]:  # the loop hears what became of it
            path = _path(each.message, 0.0)
            self.running = path if self.running is None else flown(self.running, path)
        return self.sent[count:]

    @property
    def refused(self) -> dict[str, int]:
        refused: dict[str, int] = self.core.report(self.now_s)["refused"]
        return refused


class SlowRig(Rig):
    """The same in steps of 1 ms; rosbridge passes everything on, and back, after a while."""

    def __init__(self, **config: Any) -> None:
        self.answer_s, self.held_until_s = 0.001, 0.0
        self.on_its_way: list[tuple[float, Any]] = []
        self.executed_rad: list[float] = []
        """Joint 1, every 5 ms."""
        super().__init__(**config)

    def do(self, outputs: list[Any]) -> None:
        for output in outputs:
            if isinstance(output, Send) and output.topic == ARM:
                self.sent.append(output)
                due_s = max(self.now_s + self.answer_s, self.held_until_s)
                self.on_its_way.append((due_s, output.message))

    def pass_time(self, seconds: float, joints: bool = True) -> None:
        for step in range(round(seconds * 1e3)):
            self.now_s += 0.001
            while self.on_its_way and self.on_its_way[0][0] <= self.now_s:
                _, message = self.on_its_way.pop(0)
                self._run(message)
                self.do(self.core.hear_echo(message, self.now_s))
            if joints and step % 5 == 0:
                self.joints()
                self.executed_rad.append(float(self.position()[0][0]))
            while self.core.wake_s is not None and self.now_s >= self.core.wake_s:
                self.do(self.core.wake(self.now_s))


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_trajectory_on_the_running_path_passes_as_it_is(rig: Rig) -> None:
    rig.drive()
    for _ in range(5):
        (send,) = rig.drive(offset_rad=0.4)
        assert send.message == messages.to_ros(rig.newest, ARM_JOINT_NAMES)
    report = rig.core.report(rig.now_s)
    assert report["passed"] == 5
    assert report["refused"] == {}


def test_it_waits_for_a_joint_state(rig: Rig) -> None:
    rig.now_s += 0.008
    assert rig.core.take_trajectory(CLIENT, rig.trajectory(), rig.now_s) == []
    rig.pass_time(0.01)
    assert len(rig.sent) == 1


def test_one_that_comes_late_is_retimed_onto_the_running_path(rig: Rig) -> None:
    """It would make the controller step: it left the running path 90 ms ago."""
    for _ in range(4):
        rig.drive(offset_rad=0.8)
    late = rig.trajectory(offset_rad=-0.8, lead_s=0.03)
    rig.pass_time(0.12)
    now_s, before = rig.now_s, rig.path
    assert before is not None
    step = np.abs(state_at(rig.newest, now_s + ROBOT_S)[0] - rig.position()[0])[:ARM_DOF].max()
    assert step > 0.01
    rig.do(rig.core.take_trajectory(CLIENT, late, now_s))
    rig.pass_time(0.01)
    assert rig.sent[-1].message["header"]["frame_id"].endswith("/retimed")
    assert rig.path is not None
    for look_s in np.arange(rig.now_s, rig.now_s + 0.016, 0.005):
        apart = np.abs(state_at(rig.path, look_s)[0] - state_at(before, look_s)[0])[:ARM_DOF]
        assert apart.max() < 1e-4
    assert rig.core.report(now_s)["retimed"] >= 1


def test_the_loops_prediction_tells_what_was_retimed(rig: Rig) -> None:
    for _ in range(4):
        rig.drive(offset_rad=0.8)
    late = rig.trajectory(offset_rad=-0.8, lead_s=0.03)
    prediction = messages.to_ros(rig.newest, JOINT_NAMES)
    rig.pass_time(0.12)
    rig.do(rig.core.take_trajectory(CLIENT, late, rig.now_s))
    rig.do(rig.core.take_prediction(CLIENT, prediction, rig.now_s))
    rig.pass_time(0.01)
    arm, told = rig.sent[-2:]
    assert told.topic == CoreConfig().trajectory_topic
    assert told.message["header"]["frame_id"] == arm.message["header"]["frame_id"]
    first = told.message["points"][0]["positions"]
    assert first[:ARM_DOF] == arm.message["points"][0]["positions"]


def test_a_retold_gripper_moves_with_the_velocity_of_its_prediction() -> None:
    times = np.linspace(0.0, 0.4, 11)
    speed = np.minimum(times, 0.4 - times) * 4.0
    position, velocity = np.zeros((11, 8)), np.zeros((11, 8))
    position[:, -1], velocity[:, -1] = np.cumsum(speed) * 0.04, speed
    path = Trajectory(position, velocity, times, 100.0, 3, "0a1b2c3d", 0.5)
    arm = replace(path, position_rad=np.zeros((11, 8)), velocity_rad_s=np.zeros((11, 8)))
    told = reading.retold(messages.trajectory(messages.to_ros(path)), arm, 2)
    assert [point["velocities"][-1] for point in told["points"]] == pytest.approx(speed)


def test_a_prediction_whose_trajectory_was_refused_stays_here(rig: Rig) -> None:
    rig.core.stop("test", rig.now_s)
    rig.do(rig.core.take_trajectory(CLIENT, rig.trajectory(), rig.now_s))
    rig.do(rig.core.take_prediction(CLIENT, messages.to_ros(rig.newest), rig.now_s))
    rig.pass_time(0.2)
    assert rig.sent == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"points": []}, "malformed"),
        ({"joint_names": ["a"] * 7}, "malformed"),
        ({"header": {"stamp": {"sec": 5, "nanosec": 0}, "frame_id": "moveit"}}, "malformed"),
        ({"header": {"stamp": {"sec": 0, "nanosec": 0}, "frame_id": "vla/0a1b2c3d/9/500"}},
         "malformed"),
        ({"header": {"stamp": {"sec": 5, "nanosec": 0}, "frame_id": "vla/0a1b2c3d/9/500"}},
         "expired"),
        ({"header": {"stamp": {"sec": 1_800_000_000, "nanosec": 0},
                     "frame_id": "vla/0a1b2c3d/9/500"}}, "future"),
        ({"points": "x"}, "malformed"),
        ({"points": [{"positions": [1.7e308] * 7, "velocities": [0.0] * 7,
                      "time_from_start": {"sec": 0, "nanosec": 1}}]}, "malformed"),
        ({"points": [{"positions": [float("nan")] * 7, "velocities": [0.0] * 7,
                      "time_from_start": {"sec": 0, "nanosec": 1}}]}, "malformed"),
        ({"points": [{"positions": [10**400] * 7, "velocities": [0.0] * 7,
                      "time_from_start": {"sec": 0, "nanosec": 1}}]}, "malformed"),
    ],
)  # fmt: skip
def test_what_cannot_be_checked_is_refused(rig: Rig, change: dict[str, Any], reason: str) -> None:
    rig.do(rig.core.take_trajectory(CLIENT, rig.trajectory() | change, rig.now_s))
    rig.pass_time(0.02)
    assert rig.refused == {reason: 1}
    assert rig.sent == []
    assert reason in rig.told[0]


def _point(position: Array, velocity: Array, after_s: float) -> dict[str, Any]:
    return {
        "positions": position[:ARM_DOF].tolist(),
        "velocities": velocity[:ARM_DOF].tolist(),
        "time_from_start": messages.write_stamp(after_s, 2),
    }


def test_a_trajectory_that_breaks_limits_is_built_again_within_them(rig: Rig) -> None:
    far = HOME_RAD + 1.0 * np.eye(8)[0]
    message = rig.trajectory()
    message["points"] = [_point(HOME_RAD, np.zeros(8), 0.0), _point(far, np.zeros(8), 0.1)]
    rig.do(rig.core.take_trajectory(CLIENT, message, rig.now_s))
    rig.pass_time(0.02)
    (send,) = rig.sent
    speeds = np.abs([point["velocities"] for point in send.message["points"]])
    assert speeds.max() < LIMITS.velocity_rad_s.max()
    assert not np.any(send.message["points"][-1]["velocities"])


def test_targets_far_outside_the_joint_limits_are_refused(rig: Rig) -> None:
    message = rig.trajectory()
    outside = HOME_RAD + 3.0 * np.eye(8)[0]
    message["points"] = [_point(HOME_RAD, np.zeros(8), 0.0), _point(outside, np.zeros(8), 0.4)]
    rig.do(rig.core.take_trajectory(CLIENT, message, rig.now_s))
    rig.pass_time(0.02)
    assert rig.refused == {"position": 1}


def test_a_sequence_that_came_before_is_refused(rig: Rig) -> None:
    message = rig.trajectory()
    for _ in range(2):
        rig.do(rig.core.take_trajectory(CLIENT, message, rig.now_s))
        rig.pass_time(0.02)
    assert rig.refused == {"out_of_order": 1}


def test_a_second_loop_is_refused_until_the_first_is_silent(rig: Rig) -> None:
    rig.drive()
    rig.do(rig.core.take_trajectory(2, rig.trajectory(session="ffffffff"), rig.now_s))
    rig.pass_time(0.02)
    assert rig.refused == {"other_driver": 1}
    assert rig.core.take_goal(2, 0.3, rig.now_s) is not None
    rig.pass_time(2.1)
    rig.running = None
    rig.do(rig.core.take_trajectory(2, rig.trajectory(session="ffffffff"), rig.now_s))
    rig.pass_time(0.02)
    assert rig.core.report(rig.now_s)["driver"] == "ffffffff"
    assert rig.core.take_goal(2, 0.3, rig.now_s) is None


@pytest.mark.parametrize(
    "goal", [None, "open", float("nan"), float("inf"), 2.0, -1.0, True, 10**400]
)
def test_a_gripper_goal_that_is_none_is_refused(rig: Rig, goal: object) -> None:
    assert rig.core.take_goal(CLIENT, goal, rig.now_s) is not None


# --- the robot's side stands still ----------------------------------------------------------------


def test_without_joint_states_nothing_passes(rig: Rig) -> None:
    rig.pass_time(0.05, joints=False)
    rig.do(rig.core.take_trajectory(CLIENT, rig.trajectory(), rig.now_s))
    rig.pass_time(0.2, joints=False)
    assert rig.sent == []
    assert rig.refused == {"robot_silent": 1}


def test_joint_states_that_were_held_up_do_not_let_it_pass(rig: Rig) -> None:
    """After a stall they come in one burst: they say where the arm was."""
    rig.do(rig.core.take_trajectory(CLIENT, rig.trajectory(), rig.now_s + 0.005))
    stalled_s = rig.now_s
    for index in range(10):
        stamp_s = stalled_s + 0.01 * index + ROBOT_S
        message = messages.joint_state_to_ros(JOINT_NAMES, HOME_RAD, np.zeros(8), stamp_s)
        rig.do(rig.core.hear_joints(message, stalled_s + 0.2))
    assert rig.sent == []


def test_what_does_not_come_back_is_taken_back_by_what_ran_before(rig: Rig) -> None:
    for _ in range(4):
        rig.drive(offset_rad=0.8)
    before, count = rig.path, len(rig.sent)
    assert before is not None
    rig.echoes = False
    rig.do(rig.core.take_trajectory(CLIENT, rig.trajectory(offset_rad=-0.8), rig.now_s))
    rig.pass_time(0.05)
    sent, back = rig.sent[count:]
    assert sent.message["header"]["frame_id"].startswith("vla/")
    assert back.message["header"]["frame_id"].startswith("guard/")
    assert rig.core.report(rig.now_s)["taken_back"] == 1
    path = _path(back.message, ROBOT_S)
    for look_s in np.arange(rig.now_s, rig.now_s + 1.5, 0.05):  # whenever rosbridge comes back
        apart = np.abs(state_at(path, look_s)[0] - state_at(before, look_s)[0])[:ARM_DOF]
        assert apart.max() < 1e-4


def test_until_that_has_come_back_nothing_passes(rig: Rig) -> None:
    for _ in range(3):
        rig.drive()
    rig.echoes = False
    rig.drive()
    count, own = len(rig.sent), rig.sent[-1].message
    assert own["header"]["frame_id"].startswith("guard/")
    assert rig.drive() == []
    rig.pass_time(0.05)
    rig.echoes = True
    rig.do(rig.core.hear_echo(own, rig.now_s))
    rig.pass_time(0.6)
    rig.running = None
    rig.drive()
    assert len(rig.sent) == count + 1


def test_a_guard_that_stood_still_itself_looks_before_it_takes_back(rig: Rig) -> None:
    """The answer lies in its socket; taking back one that was executed would be a step."""
    for _ in range(3):
        rig.drive()
    count = len(rig.sent)
    rig.echoes = False
    rig.do(rig.core.take_trajectory(CLIENT, rig.trajectory(), rig.now_s))
    assert len(rig.sent) == count + 1
    rig.now_s += 0.3
    rig.do(rig.core.wake(rig.now_s))
    assert len(rig.sent) == count + 1
    rig.do(rig.core.hear_echo(rig.sent[-1].message, rig.now_s))
    rig.pass_time(0.05)
    assert rig.core.report(rig.now_s)["taken_back"] == 0


def _hear_late(rig: Rig, after_s: float, **options: Any) -> None:
    """Send a trajectory; all stands still until `after_s`, and the controller then refuses it."""
    arm, rig.echoes = rig.path, False
    header = options.pop("header", {})
    message = rig.trajectory(**options)
    message["header"] |= header
    count = len(rig.sent)
    rig.do(rig.core.take_trajectory(CLIENT, message, rig.now_s))
    rig.joints()
    (sent,) = rig.sent[count:]
    rig.path, rig.echoes = arm, True
    rig.now_s += after_s
    rig.do(rig.core.hear_echo(sent.message, rig.now_s))


def test_one_that_comes_back_after_its_end_may_have_been_refused(rig: Rig) -> None:
    """A path that continued it would begin where the arm is not."""
    for _ in range(3):
        rig.drive(offset_rad=0.45)
    rig.pass_time(1.0)
    arm_rad = rig.position()[0]
    _hear_late(rig, 0.7, offset_rad=0.33)
    assert "after its end" in rig.core.report(rig.now_s)["unknown"]
    count = len(rig.sent)
    rig.do(rig.core.take_trajectory(CLIENT, rig.trajectory(), rig.now_s))
    rig.pass_time(0.1)
    assert len(rig.sent) == count
    assert rig.refused == {"unknown_path": 1}
    rig.pass_time(0.4)
    assert rig.core.report(rig.now_s)["unknown"] is None
    rig.running = None
    (send,) = rig.drive()
    first = _path(send.message, ROBOT_S).position_rad[0]
    np.testing.assert_allclose(first[:ARM_DOF], arm_rad[:ARM_DOF], atol=1e-3)


def test_one_that_comes_back_after_it_expired_may_have_been_refused(rig: Rig) -> None:
    for _ in range(3):
        rig.drive(offset_rad=0.8)
    _hear_late(rig, 0.25, offset_rad=0.4, header={"frame_id": f"vla/{SESSION}/99/200"})
    assert rig.core.report(rig.now_s)["unknown"] is not None


def test_one_that_comes_back_late_but_before_its_end_has_arrived(rig: Rig) -> None:
    for _ in range(3):
        rig.drive(offset_rad=0.8)
    path, rig.echoes = rig.path, False
    rig.do(rig.core.take_trajectory(CLIENT, rig.trajectory(), rig.now_s))
    rig.joints()
    assert rig.path is not path
    rig.now_s += 0.3  # the guard stands still
    rig.do(rig.core.hear_echo(rig.sent[-1].message, rig.now_s))
    rig.pass_time(0.05)
    assert rig.core.report(rig.now_s)["unknown"] is None


def test_one_that_moves_nothing_may_come_back_at_any_time(rig: Rig) -> None:
    for _ in range(8):
        rig.drive(offset_rad=0.3)
    rig.pass_time(1.0)
    _hear_late(rig, 0.7, offset_rad=0.3)
    rig.pass_time(0.05)
    assert rig.core.report(rig.now_s)["unknown"] is None


# --- the running path is not known ----------------------------------------------------------------


def test_a_clock_that_is_stepped_stops_driving_until_the_arm_rests() -> None:
    for step_s in (0.3, 20.0, -0.45, -3600.0):
        rig = Rig()
        for _ in range(3):
            rig.drive(offset_rad=0.8)
        rig.robot_s += step_s
        if rig.path is not None:
            rig.pass_time(0.4)
        assert rig.core.report(rig.now_s)["unknown"] is not None, step_s
        assert rig.drive() == []
        rig.pass_time(1.0)
        assert rig.core.report(rig.now_s)["unknown"] is None
        rig.running = None
        assert len(rig.drive()) == 1


def test_a_stranger_on_the_arms_topic_stops_driving_until_the_arm_rests(rig: Rig) -> None:
    rig.drive()
    message = rig.trajectory(session="12345678")
    rig.do(
        rig.core.hear_echo(message | {"header": message["header"] | {"frame_id": ""}}, rig.now_s)
    )
    unknown = rig.core.report(rig.now_s)["unknown"]
    assert "another node publishes on" in unknown
    assert rig.drive() == []
    rig.pass_time(1.0)
    rig.running = None
    assert len(rig.drive()) == 1


def test_an_arm_off_its_path_is_not_driven(rig: Rig) -> None:
    for _ in range(3):
        rig.drive()
    pushed = HOME_RAD + 0.5 * np.eye(8)[2]
    message = messages.joint_state_to_ros(JOINT_NAMES, pushed, np.zeros(8), rig.now_s + ROBOT_S)
    trajectory = rig.trajectory()
    rig.do(rig.core.hear_joints(message, rig.now_s))
    count = len(rig.sent)
    rig.do(rig.core.take_trajectory(CLIENT, trajectory, rig.now_s + 0.001))
    assert len(rig.sent) == count
    assert rig.refused == {"off_path": 1}


def test_after_rosbridge_was_lost_the_arm_must_rest_first(rig: Rig) -> None:
    rig.drive(offset_rad=0.8)
    rig.core.upstream_changed(False, rig.now_s)
    rig.core.upstream_changed(True, rig.now_s)
    assert rig.drive() == []
    rig.pass_time(1.0)
    rig.running = None
    assert len(rig.drive()) == 1


# --- stop -----------------------------------------------------------------------------------------


def test_stop_brakes_within_limits_and_passes_nothing_until_resume(rig: Rig) -> None:
    for _ in range(4):
        rig.drive(offset_rad=1.0)
    assert np.abs(rig.position()[1]).max() > 0.5
    rig.do(rig.core.stop("pressed", rig.now_s))
    brake = rig.sent[-1].message
    assert brake["header"]["frame_id"].startswith("guard/")
    speeds = [abs(point["velocities"][0]) for point in brake["points"]]
    times = [point["time_from_start"]["nanosec"] * 1e-9 for point in brake["points"]]
    assert speeds[-1] == 0.0
    slowing = np.abs(np.diff(speeds)) / np.diff(times)
    assert slowing.max() <= LIMITS.acceleration_rad_s2[0] * 1.02
    rig.pass_time(0.6)
    rest = rig.position()[0]
    assert rig.drive() == []
    assert rig.core.stopped == "pressed"
    assert rig.core.take_goal(CLIENT, 0.5, rig.now_s) is not None
    np.testing.assert_allclose(rig.position()[0], rest)
    rig.do(rig.core.resume(rig.now_s))
    rig.running = None
    assert len(rig.drive()) == 1


def test_stop_pressed_many_times_brakes_once(rig: Rig) -> None:
    for _ in range(4):
        rig.drive(offset_rad=1.0)
    count = len(rig.sent)
    for _ in range(100):
        rig.do(rig.core.stop("pressed", rig.now_s))
        rig.pass_time(0.01)
    assert len(rig.sent) == count + 1


def test_stop_while_one_is_on_its_way_brakes_when_that_has_come_back(rig: Rig) -> None:
    for _ in range(4):
        rig.drive(offset_rad=1.0)
    rig.echoes = False
    rig.do(rig.core.take_trajectory(CLIENT, rig.trajectory(offset_rad=1.0), rig.now_s))
    rig.joints()
    under_way, count = rig.sent[-1], len(rig.sent)
    rig.do(rig.core.stop("pressed", rig.now_s))
    assert len(rig.sent) == count
    rig.do(rig.core.hear_echo(under_way.message, rig.now_s))
    assert rig.sent[-1].message["header"]["frame_id"].startswith("guard/")


@pytest.mark.parametrize("how", ["stop", "link timeout"])
@pytest.mark.parametrize(
    ("answer_s", "held_s"),
    [(0.001, 0.04), (0.001, 0.3), (0.015, 0.0), (0.06, 0.0), (0.15, 0.0), (0.3, 0.0)],
)
def test_a_brake_that_was_taken_back_is_sent_again(
    answer_s: float, held_s: float, how: str
) -> None:
    """Rosbridge is held up at the moment of the stop, or needs longer from then on."""
    rig = SlowRig(link_timeout_s=0.02)
    for _ in range(4):
        rig.drive(offset_rad=2.3, valid_s=2.0)
    old, count = rig.path, len(rig.sent)
    assert old is not None
    rig.answer_s, rig.held_until_s = answer_s, rig.now_s + 0.03 + held_s
    rig.executed_rad.clear()
    if how == "link timeout":
        rig.do(rig.core.client_left(CLIENT, rig.now_s))
        rig.pass_time(0.03)
    else:
        rig.pass_time(0.03)
        rig.do(rig.core.stop("pressed", rig.now_s))
    assert rig.core.stopped is not None
    asked_s = rig.now_s + max(held_s, answer_s)
    rig.pass_time(2.5)
    report = rig.core.report(rig.now_s)
    assert (report["taken_back"], report["running"]) == (1, False)
    rest_rad = float(rig.position()[0][0])
    assert rig.executed_rad[-100:] == pytest.approx([rest_rad] * 100)
    if answer_s > 0.2:
        assert len(rig.sent) < count + 10, "questions only: no brake would come in time"
        return
    assert len(rig.sent) == count + 4, "brake, what took it back, a question, brake"
    braked_s = asked_s + 2 * answer_s + max(2.5 * answer_s, 0.03)
    position, velocity = state_at(old, braked_s)
    way_rad = velocity[0] ** 2 / 2 / LIMITS.path_rad_s2[0]
    assert rest_rad < position[0] + way_rad + 0.1
    if answer_s == 0.001:
        slopes = np.diff(rig.executed_rad, 2) / 0.005**2
        assert np.abs(slopes).max() < 1.1 * LIMITS.acceleration_rad_s2[0]


def test_a_loop_whose_link_is_lost_for_long_stops_the_arm_until_resume() -> None:
    rig = Rig(link_timeout_s=1.0)
    rig.drive()
    rig.do(rig.core.client_left(CLIENT, rig.now_s))
    rig.pass_time(0.9)
    assert rig.core.stopped is None
    rig.pass_time(0.2)
    assert rig.core.stopped is not None
    assert "loop was disconnected" in rig.core.stopped


def test_a_loop_that_comes_back_or_takes_its_leave_stops_nothing() -> None:
    rig = Rig(link_timeout_s=1.0)
    rig.drive()
    rig.do(rig.core.client_left(CLIENT, rig.now_s))
    rig.pass_time(0.6)
    rig.running = None
    assert len(rig.drive()) == 1
    rig.do(rig.core.client_left(CLIENT, rig.now_s, clean=True))
    rig.pass_time(2.0)
    assert rig.core.stopped is None


def test_one_complaint_per_reason_reaches_a_client(rig: Rig) -> None:
    rig.core.stop("pressed", rig.now_s)
    for _ in range(20):
        rig.drive()
    assert len(rig.told) == 1
    assert rig.refused["stopped"] == 20


def test_a_ros_1_robot_gets_its_own_keys(rig: Rig) -> None:
    message = rig.trajectory()
    ros_1 = messages.to_ros(rig.newest, ARM_JOINT_NAMES, version=1)
    assert ros_1["points"] != message["points"]
    rig.do(rig.core.take_trajectory(CLIENT, ros_1, rig.now_s))
    rig.pass_time(0.02)
    assert "secs" in rig.sent[0].message["points"][0]["time_from_start"]


def test_outputs_are_of_two_kinds(rig: Rig) -> None:
    assert all(isinstance(each, Send) for each in rig.drive())
