"""What the loop must survive, each with real parts; in all of them nothing bad reaches the robot
and the loop recovers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from loop_rig import (
    PICTURE,
    FaultyRobot,
    RunningLoop,
    SwingingPolicy,
    Tunnel,
    inject,
    wait_until,
)

from crane_x7_remote.rosbridge import messages
from crane_x7_remote.sim_robot.arm import still_picture
from crane_x7_vla_rl.robot import ARM_JOINT_NAMES, HOME_RAD, JOINT_NAMES
from crane_x7_vla_rl.types import ActionChunk, Observation

CAMERA = "/camera/color/image_raw/compressed"
JOINTS = "/joint_states"
INSTRUCTION = "/vla/update_instruction"
SIM_ROBOT = (sys.executable, "-m", "crane_x7_remote", "sim-robot", "--arm", "kinematic")


@pytest.fixture
def robot() -> Iterator[FaultyRobot]:
    with FaultyRobot() as robot:
        yield robot


@pytest.fixture
def running(robot: FaultyRobot) -> Iterator[RunningLoop]:
    with RunningLoop(robot.port) as running:
        running.wait_driving()
        yield running


# --- the camera ----------------------------------------------------------------------------------


def test_camera_that_stops_holds_and_comes_back(robot: FaultyRobot, running: RunningLoop) -> None:
    robot.camera_runs = False
    running.wait_hold("no_new_frame", ticks=10)
    accepted = robot.moved
    time.sleep(0.5)
    assert robot.moved == accepted
    robot.camera_runs = True
    running.wait_driving()
    robot.assert_nothing_bad_arrived()


@pytest.mark.parametrize(
    "picture",
    [
        pytest.param(PICTURE[: len(PICTURE) // 2], id="truncated"),
        pytest.param(PICTURE[:30], id="truncated in the header"),
        pytest.param(b"\xff\xd8\xff\xc0\x00\x11\x08" + b"\xff" * 400, id="huge by its header"),
        pytest.param(still_picture(5000, 4000, noise=0), id="20 megapixels"),
        pytest.param(b"GIF89a" + bytes(100), id="no JPEG"),
    ],
)
def test_a_picture_that_cannot_be_used_holds(
    robot: FaultyRobot, running: RunningLoop, picture: bytes
) -> None:
    robot.picture = picture
    running.wait_hold("frame_unreadable")
    assert running.loop.metrics.counters["refused_frames"] >= 3
    robot.picture = PICTURE
    running.wait_driving()
    robot.assert_nothing_bad_arrived()


def test_a_picture_of_20_megabytes_does_not_end_the_loop(
    robot: FaultyRobot, running: RunningLoop
) -> None:
    robot.picture = PICTURE + bytes(20_000_000)
    wait_until(lambda: running.state != "driving", 10, "hold while pictures are too large")
    robot.picture = PICTURE
    running.wait_driving(timeout_s=15)
    robot.assert_nothing_bad_arrived()


# --- messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("topic", [CAMERA, JOINTS, INSTRUCTION, "/vla/predicted_trajectory"])
def test_messages_of_a_wrong_type_change_nothing(
    robot: FaultyRobot, running: RunningLoop, topic: str
) -> None:
    wrong: list[object] = [
        {},
        {"data": 5},
        {"data": {"a": [1]}},
        {"data": [1, 2, 3]},
        {"header": 7, "data": {}},
        {"header": {"stamp": "now", "frame_id": 3}, "data": [255, 216]},
        {"name": 5, "position": "x"},
        {"name": list(JOINT_NAMES), "position": ["a"] * 8},
        {"name": list(JOINT_NAMES), "position": [1e308] * 7},
        {"joint_names": None, "points": [[]], "header": {"frame_id": "vla/xyz/1/2"}},
    ]
    inject(robot.port, topic, *wrong)
    running.wait_driving(ticks=20)
    assert set(running.policy.instructions) == {"pick up the object"}
    robot.assert_nothing_bad_arrived()


@pytest.mark.parametrize("number", ["NaN", "1e400", "-Infinity", "1" + "0" * 400])
def test_joint_states_that_are_no_numbers_hold(
    robot: FaultyRobot, running: RunningLoop, number: str
) -> None:
    value = json.loads(number)

    def tamper(message: dict[str, Any]) -> dict[str, Any]:
        return message | {"position": [value] * 9, "velocity": [value] * 9}

    robot.tamper = tamper
    wait_until(
        lambda: running.holds("joints_not_finite") + running.holds("joints_stale") >= 3,
        5,
        "hold for joints",
    )
    robot.tamper = dict
    running.wait_driving()
    robot.assert_nothing_bad_arrived()


def _without(index: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def tamper(message: dict[str, Any]) -> dict[str, Any]:
        keep = [name != ARM_JOINT_NAMES[index] for name in message["name"]]
        return message | {
            key: [value for value, kept in zip(message[key], keep, strict=True) if kept]
            for key in ("name", "position", "velocity")
        }

    return tamper


def _renamed(message: dict[str, Any]) -> dict[str, Any]:
    return message | {"name": [name.replace("crane_x7_", "arm_") for name in message["name"]]}


def _reversed(message: dict[str, Any]) -> dict[str, Any]:
    return message | {key: message[key][::-1] for key in ("name", "position", "velocity")}


@pytest.mark.parametrize("tamper", [_without(0), _without(6), _renamed])
def test_joints_that_are_missing_or_renamed_hold(
    robot: FaultyRobot,
    running: RunningLoop,
    tamper: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    robot.tamper = tamper
    running.wait_hold("joints_stale")
    robot.tamper = dict
    running.wait_driving()
    robot.assert_nothing_bad_arrived()


def test_joints_that_are_missing_from_the_start_hold(robot: FaultyRobot) -> None:
    robot.tamper = _renamed
    with RunningLoop(robot.port) as running:
        running.wait_hold("no_joints")
        assert robot.moved == 0
        robot.tamper = dict
        running.wait_driving()
    robot.assert_nothing_bad_arrived()


def test_joints_in_another_order_are_driven_all_the_same(
    robot: FaultyRobot, running: RunningLoop
) -> None:
    robot.tamper = _reversed
    running.wait_driving(ticks=20)
    joints = running.client.joints()
    assert joints is not None
    still = [2, 3, 4, 5, 6]
    np.testing.assert_allclose(joints.state.position_rad[still], HOME_RAD[still], atol=1e-3)
    assert not running.holds("jump")
    robot.assert_nothing_bad_arrived()


@pytest.mark.parametrize(
    "message",
    [
        pytest.param({"data": ""}, id="empty"),
        pytest.param({"data": "  \n"}, id="blank"),
        pytest.param({"data": "x" * 100_000}, id="100 kB"),
        pytest.param('{"data": "pick \\ud800 up"}', id="not UTF-8, a lone surrogate"),
        pytest.param({"data": "pick \ufffd up"}, id="not UTF-8, replaced on the way"),
        pytest.param({"data": None}, id="nothing"),
    ],
)
def test_an_instruction_that_is_none_changes_nothing(
    robot: FaultyRobot, running: RunningLoop, message: object
) -> None:
    inject(robot.port, INSTRUCTION, message)
    running.wait_driving(ticks=10)
    assert set(running.policy.instructions) == {"pick up the object"}
    inject(robot.port, INSTRUCTION, {"data": "pick up the blue cube"})
    wait_until(
        lambda: running.policy.instructions[-1] == "pick up the blue cube", 3, "new instruction"
    )
    robot.assert_nothing_bad_arrived()


# --- the policy ----------------------------------------------------------------------------------


def _raise(_: Observation) -> object:
    raise RuntimeError("CUDA out of memory")


POLICY_FAULTS: dict[str, tuple[Callable[[Observation], object], str]] = {
    "raises": (_raise, "policy_raised"),
    "returns NaN": (lambda _: ActionChunk(np.full((4, 8), np.nan), 0.1), "action_not_finite"),
    "returns a wrong shape": (lambda _: ActionChunk(np.zeros((4, 6)), 0.1), "policy_raised"),
    "returns no chunk": (lambda _: np.zeros(8), "policy_output"),
    "is out of limits": (lambda _: ActionChunk(np.full((4, 8), 3.0), 0.1), "joint_limit"),
    "jumps": (lambda _: ActionChunk(HOME_RAD + 1.4 * np.eye(8)[:1], 0.1), "jump"),
    "opens too far": (lambda _: ActionChunk(HOME_RAD + 1.9 * np.eye(8)[7:], 0.1), "gripper_range"),
}


@pytest.mark.parametrize("name", POLICY_FAULTS)
def test_a_policy_that_fails_holds_and_recovers(
    robot: FaultyRobot, running: RunningLoop, name: str
) -> None:
    fault, reason = POLICY_FAULTS[name]
    running.policy.fault = fault
    running.wait_hold(reason)
    running.policy.fault = None
    running.wait_driving()
    robot.assert_nothing_bad_arrived()


def test_a_policy_that_stalls_holds_and_recovers(robot: FaultyRobot) -> None:
    policy, release = SwingingPolicy(), threading.Event()

    def stall(observation: Observation) -> object:
        release.wait(20)
        return policy.swing(observation)

    with RunningLoop(robot.port, policy, policy_timeout_s=0.1) as running:
        running.wait_driving()
        policy.fault = stall
        running.wait_hold("policy_timeout", ticks=1)
        running.wait_hold("policy_busy")
        accepted = robot.moved
        policy.fault = None
        time.sleep(0.6)
        assert robot.moved == accepted
        release.set()
        running.wait_driving()
    robot.assert_nothing_bad_arrived()


# --- clocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset_s", [3600.0, -3600.0])
def test_a_robot_whose_clock_is_an_hour_off_is_driven(offset_s: float) -> None:
    with FaultyRobot(clock_offset_s=offset_s) as robot:
        with RunningLoop(robot.port) as running:
            running.wait_driving(ticks=20)
            assert not running.holds("frame_stale")
        assert robot.moved >= 20
        robot.assert_nothing_bad_arrived()


@pytest.mark.parametrize("by_s", [0.3, 20.0, -0.2, -0.45, -3600.0])
def test_a_robot_whose_clock_is_set_is_driven_again_after_its_path_has_ended(
    robot: FaultyRobot, running: RunningLoop, by_s: float
) -> None:
    robot.set_clock(by_s)
    set_s = time.monotonic()
    running.wait_hold("clock_stepped")
    held_s = time.monotonic()
    running.wait_driving()
    assert held_s - set_s < 1.0
    assert time.monotonic() - set_s < 3.0
    assert running.client.link.reconnects == 0
    assert not running.holds("clocks_differ")


@pytest.mark.parametrize("ahead_s", [2.0, 37.0, 1e8, -2.0])
def test_a_camera_on_another_clock_is_not_driven_with(robot: FaultyRobot, ahead_s: float) -> None:
    robot.camera_ahead_s = lambda _: ahead_s
    with RunningLoop(robot.port) as running:
        running.wait_hold("clocks_differ", ticks=20)
        assert robot.moved == 0
        robot.camera_ahead_s = lambda _: 0.0
        running.wait_driving()
    robot.assert_nothing_bad_arrived()


def test_a_camera_a_little_ahead_is_driven_with_on_the_controllers_clock(
    robot: FaultyRobot,
) -> None:
    robot.camera_ahead_s = lambda _: 0.3
    with RunningLoop(robot.port) as running:
        running.wait_driving(ticks=20)
    robot.assert_nothing_bad_arrived()
    assert all(stamp_s <= arrived_s for arrived_s, stamp_s in robot.stamps)


def test_one_wrong_stamp_costs_one_frame(robot: FaultyRobot, running: RunningLoop) -> None:
    wrong = iter([0.45, 20.0, -0.45, -20.0])
    for by_s in wrong:
        once = [by_s]
        robot.camera_ahead_s = lambda _, once=once: once.pop() if once else 0.0  # type: ignore[misc]
        wait_until(lambda once=once: not once, 2, "the wrong stamp is sent")  # type: ignore[misc]
        running.wait_driving(ticks=10)
    assert running.holds("clock_stepped") + running.holds("frame_stale") <= 8
    assert not running.holds("too_late")
    robot.assert_nothing_bad_arrived()


def test_a_simulation_slower_than_real_time_is_named(robot: FaultyRobot) -> None:
    begin_s = robot.time_s()

    def slow(stamp_s: float) -> float:
        return -0.4 * (stamp_s - begin_s)

    def tamper(message: dict[str, Any]) -> dict[str, Any]:
        stamp_s = messages.read_stamp(message)
        stamp = messages.write_stamp(stamp_s + slow(stamp_s), 2)
        return message | {"header": message["header"] | {"stamp": stamp}}

    robot.camera_ahead_s, robot.tamper = slow, tamper
    with RunningLoop(robot.port) as running:
        running.wait_hold("clock_rate", ticks=20, timeout_s=10)
        assert running.client.link.reconnects == 0
    assert robot.report.limit_violations == 0


# --- joint states that cannot be -----------------------------------------------------------------


class SecondPublisher:
    """A node that also publishes joint states on the robot's topic, 100 times a second."""

    def __init__(self, robot: FaultyRobot) -> None:
        self._robot = robot
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        from websockets.sync.client import connect

        with connect(f"ws://127.0.0.1:{self._robot.port}", max_size=None) as link:
            while not self._stop.wait(0.01):
                message = messages.joint_state_to_ros(
                    JOINT_NAMES, np.zeros(8), np.zeros(8), self._robot.time_s()
                )
                link.send(json.dumps({"op": "publish", "topic": JOINTS, "msg": message}))

    def __enter__(self) -> SecondPublisher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)


def test_a_second_publisher_of_joint_states_holds_and_nothing_moves(robot: FaultyRobot) -> None:
    policy = SwingingPolicy()
    policy.fault = lambda seen: ActionChunk(seen.joints.position_rad[None], 0.1)  # hold still
    with RunningLoop(robot.port, policy) as running:
        running.wait_driving()
        with SecondPublisher(robot):
            running.wait_hold("joints_conflict", ticks=40)
        assert robot.report.max_step_rad < 1e-3
        running.wait_driving()
    robot.assert_nothing_bad_arrived()
    assert robot.report.max_step_rad < 1e-3


def test_an_arm_without_torque_holds_and_is_driven_again(
    robot: FaultyRobot, running: RunningLoop
) -> None:
    robot.torque = False
    running.wait_hold("not_following", ticks=10, timeout_s=10)
    robot.torque = True
    running.wait_driving(ticks=40, timeout_s=15)
    held = running.holds("not_following")
    running.wait_driving(ticks=40)
    assert running.holds("not_following") == held


def test_wheels_on_the_joint_states_topic_are_no_reason_to_hold(
    robot: FaultyRobot, running: RunningLoop
) -> None:
    wheels = {"name": ["wheel_left", "wheel_right"], "position": [0.1, 0.2]}
    before = sum(running.loop.metrics.holds[reason] for reason in ("no_joints", "joints_stale"))
    inject(robot.port, JOINTS, *[wheels] * 200)
    running.wait_driving(ticks=20)
    after = sum(running.loop.metrics.holds[reason] for reason in ("no_joints", "joints_stale"))
    assert after == before
    robot.assert_nothing_bad_arrived()


# --- two loops -----------------------------------------------------------------------------------


def _drivers(robot: FaultyRobot, since_s: float) -> list[str]:
    return [session for at_s, session in robot.sessions if at_s >= since_s]


def test_of_two_loops_only_the_one_that_drives_goes_on(
    robot: FaultyRobot, running: RunningLoop
) -> None:
    with RunningLoop(robot.port, session="00000000") as second:
        second.wait_hold("other_loop", ticks=20)
        assert set(_drivers(robot, 0)) == {running.session}
    robot.assert_nothing_bad_arrived()


def test_the_second_loop_takes_over_when_the_first_falls_silent(robot: FaultyRobot) -> None:
    with RunningLoop(robot.port) as first:
        first.wait_driving()
        with RunningLoop(robot.port) as second:
            second.wait_hold("other_loop")
            first.policy.fault = _raise
            fell_silent_s = time.monotonic()
            second.wait_driving(ticks=10)
            assert 1.5 < time.monotonic() - fell_silent_s < 5
            first.policy.fault = None
            first.wait_hold("other_loop")
            recent = time.monotonic() - 0.5
            assert set(_drivers(robot, recent)) == {second.session}
    robot.assert_nothing_bad_arrived()


def test_two_loops_that_start_at_once_settle_on_one(robot: FaultyRobot) -> None:
    with (
        RunningLoop(robot.port, session="11111111") as one,
        RunningLoop(robot.port, session="22222222") as two,
    ):
        wait_until(lambda: robot.moved > 10, 10, "one of them drives")
        time.sleep(1.0)
        recent = _drivers(robot, time.monotonic() - 0.5)
        assert len(set(recent)) == 1
        loser = two if recent[0] == one.session else one
        assert _drivers(robot, 0).count(loser.session) <= 4  # a short overlap
    robot.assert_nothing_bad_arrived()


# --- the server ----------------------------------------------------------------------------------


def _spawn_robot(port: int) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [*SIM_ROBOT, "--port", str(port)],
        stdout=subprocess.PIPE,
        text=True,
        env={key: value for key, value in os.environ.items() if not key.startswith("VLA_")},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("ready"), line
    return process, int(line.split()[-1])


def _controller_report(port: int) -> dict[str, Any]:
    from websockets.sync.client import connect

    with connect(f"ws://127.0.0.1:{port}") as socket:
        socket.send('{"op":"subscribe","topic":"/sim/state","type":"std_msgs/String"}')
        operation = json.loads(socket.recv(timeout=5))
    report: dict[str, Any] = json.loads(operation["msg"]["data"])["controller"]
    return report


def test_a_server_that_is_killed_and_restarted_is_driven_again() -> None:
    process, port = _spawn_robot(0)
    try:
        with RunningLoop(port) as running:
            running.wait_driving()
            before = _controller_report(port)
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=5)
            running.wait_hold("link_down")
            process, _ = _spawn_robot(port)
            running.wait_driving(ticks=15, timeout_s=15)
            after = _controller_report(port)
    finally:
        process.kill()
        process.communicate()
    for report in (before, after):
        assert report["accepted"] > 0
        assert report["limit_violations"] == 0
        assert report["rejected"] == {}


@pytest.mark.parametrize("dark_s", [1.2, 5.0, pytest.param(20.0, marks=pytest.mark.timeout(180))])
def test_a_link_that_goes_dark_and_comes_back_is_driven_again(
    robot: FaultyRobot, dark_s: float
) -> None:
    with Tunnel(robot.port) as tunnel, RunningLoop(tunnel.port) as running:
        running.wait_driving(ticks=20)
        tunnel.go_dark()
        time.sleep(0.7)  # what was accepted before has ended by now
        accepted = robot.moved
        time.sleep(dark_s - 0.7)
        assert running.state != "driving"
        assert robot.moved == accepted
        back_s = time.monotonic()
        tunnel.come_back()
        running.wait_driving(timeout_s=10)
        assert time.monotonic() - back_s < 6
        wait_until(lambda: robot.moved > accepted, 2, "the robot takes trajectories again")
        running.wait_driving(ticks=20)
    # What lay in the tunnel arrives late, and is refused by its validity.
    robot.assert_nothing_bad_arrived(refused=("expired", "ended_in_the_past"))
