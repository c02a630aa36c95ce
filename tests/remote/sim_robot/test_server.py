"""The rosbridge server of the simulated robot, driven over real WebSockets."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import cbor2
import numpy as np
import pytest
import simplejpeg
from loop_rig import wait_until
from sim_robot_rig import Client, state_now
from websockets.sync.client import connect

from crane_x7_remote.errors import RemoteError
from crane_x7_remote.rosbridge import frames, messages, protocol
from crane_x7_remote.settings import Settings
from crane_x7_remote.sim_robot.arm import KinematicArm
from crane_x7_remote.sim_robot.robot import (
    SIM_HAND_TOPIC,
    SIM_SCENE_TOPIC,
    SIM_STATE_TOPIC,
    SIM_TARGETS_TOPIC,
    SIM_VIEW_TOPIC,
    RobotConfig,
    SimRobot,
)
from crane_x7_remote.sim_robot.server import ServerConfig
from crane_x7_vla_rl.robot import ARM_JOINT_NAMES, FINGER_B, HOME_RAD, JOINT_NAMES

TOPICS = Settings()
CAMERA, JOINTS = TOPICS.camera_topic, TOPICS.joint_states_topic
CAMERA_TYPE, JOINTS_TYPE = "sensor_msgs/msg/CompressedImage", "sensor_msgs/msg/JointState"
STRING, TRAJECTORY = "std_msgs/msg/String", "trajectory_msgs/msg/JointTrajectory"
GRIPPER = "control_msgs/action/GripperCommand"
Connect = Callable[[], Client]


def config(**changes: Any) -> RobotConfig:
    return RobotConfig(**({"server": ServerConfig(port=0)} | changes))


@pytest.fixture
def robot() -> Iterator[SimRobot]:
    with SimRobot(config(), KinematicArm) as running:
        yield running


@pytest.fixture
def client_of() -> Iterator[Callable[[SimRobot], Client]]:
    with ExitStack() as stack:
        yield lambda robot: Client(
            stack.enter_context(
                connect(
                    f"ws://127.0.0.1:{robot.port}",
                    max_size=None,
                    compression=None,
                    close_timeout=1,  # some tests leave much that was never read
                )
            )
        )


@pytest.fixture
def new_client(robot: SimRobot, client_of: Callable[[SimRobot], Client]) -> Connect:
    return lambda: client_of(robot)


@pytest.fixture
def client(new_client: Connect) -> Client:
    return new_client()


@pytest.mark.parametrize("type_name", [CAMERA_TYPE, "sensor_msgs/CompressedImage"])
@pytest.mark.parametrize("compression", ["none", "cbor"])
def test_camera_is_served(client: Client, type_name: str, compression: str) -> None:
    client.subscribe(CAMERA, type_name, compression=compression)
    payload = client.connection.recv(timeout=5)
    assert isinstance(payload, bytes if compression == "cbor" else str)
    message = protocol.decode(payload)["msg"]
    assert isinstance(message["data"], bytes if compression == "cbor" else str)
    frame = frames.from_message(message, arrival_s=0.0)
    assert frames.decode_image(frame).shape == (480, 640, 3)
    assert 60_000 < len(frame.image_bytes) < 100_000


@pytest.mark.parametrize("compression", ["none", "cbor"])
def test_joint_states_are_in_the_robots_own_order_with_finger_b(
    client: Client, compression: str
) -> None:
    client.subscribe(JOINTS, JOINTS_TYPE, compression=compression)
    message = client.next("publish")["msg"]
    assert sorted(message["name"]) == sorted((*JOINT_NAMES, FINGER_B.name))
    assert tuple(message["name"][:8]) != JOINT_NAMES
    state = messages.joint_state(message)
    np.testing.assert_allclose(state.position_rad, HOME_RAD)
    np.testing.assert_allclose(state.velocity_rad_s, 0)


def test_joint_positions_are_packed_into_typed_arrays_as_real_rosbridge_does(
    client: Client,
) -> None:
    client.subscribe(JOINTS, JOINTS_TYPE, compression="cbor")
    position = cbor2.loads(client.connection.recv(timeout=5))["msg"]["position"]
    assert position.tag == 86
    assert len(position.value) == 9 * 8


@pytest.mark.parametrize(("version", "keys"), [(1, {"secs", "nsecs"}), (2, {"sec", "nanosec"})])
def test_time_keys_and_clock(
    client_of: Callable[[SimRobot], Client], version: Any, keys: set[str]
) -> None:
    with SimRobot(config(ros_version=version, clock_offset_s=3600.0), KinematicArm) as robot:
        client = client_of(robot)
        client.subscribe(JOINTS, "sensor_msgs/JointState")
        header = client.next("publish")["msg"]["header"]
    assert set(header["stamp"]) == keys
    assert messages.read_stamp(header) == pytest.approx(time.time() + 3600, abs=2)


def test_a_stepped_clock_shows_in_stamps_and_leaves_the_arm_moving(
    client_of: Callable[[SimRobot], Client],
) -> None:
    times: list[float] = []
    robot = SimRobot(config(), KinematicArm, on_updates=lambda at, _: times.extend(at))
    with robot:
        client = client_of(robot)
        for seconds in (-0.2, -3600.0, 3620.0):
            before = robot.time_s()
            robot.step_clock(seconds)
            assert robot.time_s() - before == pytest.approx(seconds, abs=1)
        client.subscribe(JOINTS, JOINTS_TYPE)
        header = client.next("publish")["msg"]["header"]
        assert messages.read_stamp(header) == pytest.approx(robot.time_s(), abs=1)
        client.send("publish", topic=TOPICS.arm_topic, msg=trajectory(HOME_RAD[:7] + 0.1))
        report = state_now(client)["controller"]
    assert report["accepted"] == 1
    assert report["steps"] == 0
    assert report["max_step_rad"] > 0
    np.testing.assert_allclose(np.diff(times), 1 / 200, atol=1e-6)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 1e300, -2e9, 2e9])
def test_a_step_out_of_ros_time_is_refused(robot: SimRobot, seconds: float) -> None:
    before = robot.time_s()
    with pytest.raises(RemoteError, match="range of ROS time"):
        robot.step_clock(seconds)
    assert robot.time_s() == pytest.approx(before, abs=1)


def test_whatever_the_robot_raises_is_answered_and_the_link_stays(
    client_of: Callable[[SimRobot], Client], caplog: pytest.LogCaptureFixture
) -> None:
    errors = [OverflowError("a"), ValueError("b"), FloatingPointError("c"), MemoryError()]

    class Failing(SimRobot):
        def receive(self, topic: str, message: Any) -> None:
            del topic, message
            raise errors.pop()

    with Failing(config(), KinematicArm) as robot:
        client = client_of(robot)
        while errors:
            client.send("publish", topic=TOPICS.arm_topic, id="p", msg={})
            status = client.next("status")
            assert (status["level"], status["id"]) == ("error", "p")
            assert "internal error" in status["msg"]
        client.subscribe(JOINTS, JOINTS_TYPE)
        assert client.next("publish")["topic"] == JOINTS
    assert "an operation failed" in caplog.text


def test_sim_state_is_json(client: Client) -> None:
    client.subscribe(SIM_STATE_TOPIC, STRING)
    state = json.loads(client.next("publish")["msg"]["data"])
    assert state["controller"] == {
        "accepted": 0,
        "rejected": {},
        "max_velocity_ratio": 0.0,
        "max_step_rad": 0.0,
        "max_acceleration_rad_s2": 0.0,
        "limit_violations": 0,
        "velocity_violations": 0,
        "acceleration_violations": 0,
        "steps": 0,
        "steps_2mrad": 0,
    }
    assert state["cubes"] == {}


def test_rates_are_kept(client: Client) -> None:
    client.subscribe(CAMERA, CAMERA_TYPE, compression="cbor")
    client.subscribe(JOINTS, JOINTS_TYPE, compression="cbor")
    client.next("publish")
    topics = [operation["topic"] for operation in client.collect(2.0)]
    assert_rate(topics.count(CAMERA), 60)
    assert_rate(topics.count(JOINTS), 120)


def stamps(client: Client, duration_s: float) -> np.ndarray:
    """Stamps of the joint states that arrive within `duration_s`."""
    client.subscribe(JOINTS, JOINTS_TYPE, compression="cbor")
    return np.array([messages.read_stamp(each["msg"]) for each in client.collect(duration_s)])


def test_stamps_advance_by_the_control_period(client: Client) -> None:
    gaps = np.diff(stamps(client, 2.0))
    assert np.median(gaps) == pytest.approx(1 / 60, abs=0.004)
    assert gaps.mean() == pytest.approx(1 / 60, rel=0.1)


def test_a_simulation_too_slow_for_real_time_stays_with_the_clock(
    client_of: Callable[[SimRobot], Client],
) -> None:
    class Slow(KinematicArm):
        def step(self, target_rad: np.ndarray) -> None:
            time.sleep(0.03)  # the period is 17 ms
            super().step(target_rad)

    with SimRobot(config(), Slow) as robot:
        seen = stamps(client_of(robot), 2.0)
        assert robot.time_s() - seen[-1] < 0.4
        assert len(seen) > 8


def assert_rate(count: int, wanted: float) -> None:
    """No more than wanted; a busy machine may serve fewer, yet more than the next lower rate."""
    assert 0.6 * wanted < count <= 1.05 * wanted + 4


@pytest.mark.parametrize(("throttle_ms", "rate_hz"), [(0, 30), (55, 15), (80, 10), (200, 5)])
def test_throttle_quantises_to_the_cameras_frames(
    client: Client, throttle_ms: int, rate_hz: float
) -> None:
    client.subscribe(CAMERA, CAMERA_TYPE, compression="cbor", throttle_rate=throttle_ms)
    client.next("publish")
    assert_rate(len(client.collect(2.0)), 2 * rate_hz)


def test_subscribing_again_with_the_same_id_changes_the_throttle(client: Client) -> None:
    client.subscribe(JOINTS, JOINTS_TYPE, id="a", throttle_rate=300)
    assert len(client.collect(1.0)) <= 5
    client.subscribe(JOINTS, JOINTS_TYPE, id="a", throttle_rate=0)
    assert len(client.collect(1.0)) > 40


def test_two_ids_share_the_shorter_throttle_until_one_leaves(client: Client) -> None:
    client.subscribe(JOINTS, JOINTS_TYPE, id="slow", throttle_rate=400)
    client.subscribe(JOINTS, JOINTS_TYPE, id="fast", throttle_rate=0)
    assert 45 < len(client.collect(1.0)) < 75
    client.send("unsubscribe", topic=JOINTS, id="fast")
    client.collect(0.1)
    assert 1 <= len(client.collect(1.0)) <= 4
    client.send("unsubscribe", topic=JOINTS, id="slow")
    client.collect(0.1)
    assert client.collect(0.5) == []


def test_a_message_reaches_the_other_subscribers_and_its_own_sender(new_client: Connect) -> None:
    speaker, listener, binary = new_client(), new_client(), new_client()
    listener.subscribe("/vla/update_instruction", "std_msgs/String")
    binary.subscribe("/vla/update_instruction", STRING, compression="cbor")
    speaker.subscribe("/vla/update_instruction", STRING)
    speaker.send("advertise", topic="/vla/update_instruction", type=STRING)
    time.sleep(0.2)
    speaker.send("publish", topic="/vla/update_instruction", msg={"data": "pick up the red cube"})
    for client in (listener, binary, speaker):
        operation = client.next("publish")
        assert operation["topic"] == "/vla/update_instruction"
        assert messages.instruction(operation["msg"]) == "pick up the red cube"


def test_a_message_that_ros_cannot_hold_reaches_nobody_and_its_sender_is_told(
    new_client: Connect,
) -> None:
    speaker, plain, binary = new_client(), new_client(), new_client()
    plain.subscribe("/x", STRING)
    binary.subscribe("/x", STRING, compression="cbor")
    speaker.send("advertise", topic="/x", type=STRING)
    time.sleep(0.2)
    odd = {"data": datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)}
    for payload, said in (
        ('{"op": "publish", "topic": "/x", "msg": {"data": "\\ud800"}}', "valid Unicode"),
        (cbor2.dumps({"op": "publish", "topic": "/x", "msg": odd}), "expected a string"),
        ('{"op": "publish", "topic": "/x", "msg": {"text": "a"}}', "has no field 'text'"),
    ):
        speaker.connection.send(payload)
        assert said in speaker.next("status")["msg"]
    speaker.send("publish", topic="/x", msg={})
    for client in (plain, binary):
        assert client.next("publish")["msg"] == {"data": ""}, "a missing field is empty"


def test_a_number_that_is_none_is_null_in_json_as_at_a_real_server(new_client: Connect) -> None:
    speaker, plain, binary = new_client(), new_client(), new_client()
    plain.subscribe("/x", "std_msgs/Float64")
    binary.subscribe("/x", "std_msgs/Float64", compression="cbor")
    speaker.send("advertise", topic="/x", type="std_msgs/Float64")
    time.sleep(0.2)
    speaker.connection.send('{"op": "publish", "topic": "/x", "msg": {"data": 1e400}}')
    assert plain.next("publish")["msg"] == {"data": None}
    assert binary.next("publish")["msg"] == {"data": float("inf")}


def trajectory(target: np.ndarray, offset: float = 0.3, **header: Any) -> dict[str, Any]:
    return {
        "header": {"stamp": {"sec": 0, "nanosec": 0}, "frame_id": ""} | header,
        "joint_names": list(ARM_JOINT_NAMES),
        "points": [
            {
                "positions": [float(value) for value in target],
                "velocities": [0.0] * 7,
                "time_from_start": messages.write_stamp(offset, 2),
            }
        ],
    }


def position_now(client: Client) -> np.ndarray:
    while True:
        operation = client.next("publish")
        if operation["topic"] == JOINTS:
            return messages.joint_state(operation["msg"]).position_rad


def test_a_trajectory_moves_the_arm_and_is_seen_by_recorders(new_client: Connect) -> None:
    driver, recorder = new_client(), new_client()
    recorder.subscribe(TOPICS.arm_topic, TRAJECTORY)
    driver.subscribe(JOINTS, JOINTS_TYPE)
    driver.subscribe(SIM_STATE_TOPIC, STRING)
    driver.send("publish", topic=TOPICS.arm_topic, msg=trajectory(HOME_RAD[:7] + 0.1))
    seen = recorder.next("publish")["msg"]
    assert seen["joint_names"] == list(ARM_JOINT_NAMES)
    driver.collect(1.0)
    np.testing.assert_allclose(position_now(driver)[:7], HOME_RAD[:7] + 0.1, atol=1e-3)


def test_a_refused_trajectory_is_counted_by_reason(client: Client) -> None:
    client.send("publish", topic=TOPICS.arm_topic, msg=trajectory(HOME_RAD[:7]))
    broken = trajectory(HOME_RAD[:7])
    broken["joint_names"] = [*broken["joint_names"][:6], "elbow"]
    client.send("publish", topic=TOPICS.arm_topic, msg=broken)
    client.send("publish", topic=TOPICS.arm_topic, msg={"points": 3})
    assert "JointTrajectory" in client.next("status")["msg"]
    report = state_now(client)["controller"]
    assert report["accepted"] == 1
    assert report["rejected"] == {"joint_names": 1, "malformed": 1}
    assert report["limit_violations"] == 0


def test_a_hand_puts_back_the_cube_that_it_is_told_to(
    client_of: Callable[[SimRobot], Client],
) -> None:
    put_back: list[str] = []

    class WithCubes(KinematicArm):
        def put_back(self, colour: str) -> None:
            put_back.append(colour)

    with SimRobot(config(), WithCubes) as robot:
        client = client_of(robot)
        client.send("publish", topic=SIM_HAND_TOPIC, msg={"data": 3})
        assert "expected a string" in client.next("status")["msg"]
        client.send("publish", topic=SIM_HAND_TOPIC, msg={"data": "red"})
        state_now(client)
    assert put_back == ["red"]


def test_a_hand_arranges_the_scene_of_a_seed_and_the_state_says_so(
    client_of: Callable[[SimRobot], Client],
) -> None:
    seeds: list[int] = []

    class WithScene(KinematicArm):
        def arrange(self, seed: int) -> None:
            seeds.append(seed)

    with SimRobot(replace(config(), description={"seed": 3}), WithScene) as robot:
        client = client_of(robot)
        before = state_now(client)
        assert (before["seed"], before["arranged"]) == (3, 0)
        for wrong, said in ((-1, "expected a seed of 0 or more"), ("x", "expected")):
            client.send("publish", topic=SIM_SCENE_TOPIC, msg={"data": wrong})
            assert said in client.next("status")["msg"]
        for count, seed in enumerate((8, 8), 1):
            client.send("publish", topic=SIM_SCENE_TOPIC, msg={"data": seed})
            after = state_now(client)
            assert (after["seed"], after["arranged"]) == (8, count)
    assert seeds == [8, 8]


def test_the_gripper_action_answers_when_reached(client: Client) -> None:
    goal = {"command": {"position": 0.8, "max_effort": 0.0}}
    client.send("send_action_goal", id="g1", action=TOPICS.gripper_action, args=goal,
                action_type=GRIPPER, feedback=False)  # fmt: skip
    result = client.next("action_result")
    assert (result["id"], result["status"], result["result"]) == ("g1", 4, True)
    assert result["values"]["reached_goal"] is True
    assert result["values"]["position"] == pytest.approx(0.8, abs=0.02)


def test_targets_tell_a_goal_no_later_than_the_joints_that_follow_it(client: Client) -> None:
    client.subscribe(SIM_TARGETS_TOPIC, JOINTS_TYPE)
    client.subscribe(JOINTS, JOINTS_TYPE)
    client.next("publish")
    client.send("send_action_goal", id="g1", action=TOPICS.gripper_action, action_type=GRIPPER,
                args={"command": {"position": 0.8}})  # fmt: skip
    first_s: dict[str, float] = {}
    for operation in client.collect(0.5):
        if operation["op"] == "publish":
            state = messages.joint_state(operation["msg"])
            if state.position_rad[-1] > HOME_RAD[-1] + 0.4:
                first_s.setdefault(operation["topic"], messages.read_stamp(operation["msg"]))
    assert first_s[SIM_TARGETS_TOPIC] <= first_s[JOINTS]


def test_the_newest_gripper_goal_wins(client: Client) -> None:
    for goal_id, position in (("g1", 1.5), ("g2", 0.4)):
        client.send("send_action_goal", id=goal_id, action=TOPICS.gripper_action,
                    action_type=GRIPPER, args={"command": {"position": position}})  # fmt: skip
    results = {operation["id"]: operation for operation in client.collect(2.0)}
    assert results["g1"]["status"] == 5
    assert results["g2"]["status"] == 4
    client.subscribe(JOINTS, JOINTS_TYPE)
    assert position_now(client)[-1] == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize(
    ("action", "args"),
    [
        ("/nobody", {"command": {"position": 0.5}}),
        (TOPICS.gripper_action, {"command": {"position": "wide"}}),
        (TOPICS.gripper_action, {"command": {"position": 99}}),
        (TOPICS.gripper_action, [1, 2]),
    ],
)
def test_a_wrong_goal_is_answered_with_a_failure(client: Client, action: str, args: Any) -> None:
    client.send("send_action_goal", id="g1", action=action, action_type=GRIPPER, args=args)
    result = client.next("action_result")
    assert (result["id"], result["result"]) == ("g1", False)


@pytest.mark.parametrize(
    "payload",
    [
        "not json",
        "[1, 2]",
        '{"topic": "/x"}',
        '{"op": "fly"}',
        '{"op": 3}',
        '{"op": "subscribe"}',
        '{"op": "subscribe", "topic": 5}',
        '{"op": "subscribe", "topic": "/x"}',
        '{"op": "subscribe", "topic": "/x", "type": "no_such_msgs/Thing"}',
        '{"op": "subscribe", "topic": "/joint_states", "type": "std_msgs/String"}',
        '{"op": "subscribe", "topic": "/joint_states", "compression": "png"}',
        '{"op": "subscribe", "topic": "/joint_states", "throttle_rate": "fast"}',
        '{"op": "subscribe", "topic": "/joint_states", "throttle_rate": -1}',
        '{"op": "subscribe", "topic": "/joint_states", "throttle_rate": NaN}',
        '{"op": "subscribe", "topic": "/joint_states", "throttle_rate": 1e400}',
        f'{{"op": "subscribe", "topic": "/joint_states", "throttle_rate": 1{"0" * 400}}}',
        '{"op": "advertise", "topic": "/x"}',
        '{"op": "publish", "topic": "/never_advertised", "msg": {}}',
        '{"op": "publish", "topic": "/joint_states", "msg": 7}',
        '{"op": "set_level", "level": "loud"}',
        '{"op": "send_action_goal"}',
        '{"op": "send_action_goal", "action": "/crane_x7_gripper_controller/gripper_cmd"}',
        "{" * 100_000,
        b"",
        b"\x00\xff garbage",
        b"\xa1",
    ],
)
def test_a_mistake_is_answered_and_the_connection_stays(
    client: Client, payload: str | bytes
) -> None:
    client.connection.send(payload)
    status = client.next("status")
    assert status["level"] == "error"
    assert status["msg"]
    assert "internal" not in status["msg"], "a mistake that nobody thought of"
    assert len(status["msg"]) <= 500
    client.subscribe(JOINTS, JOINTS_TYPE)
    assert client.next("publish")["topic"] == JOINTS


def test_status_names_the_operation_and_obeys_the_level(client: Client) -> None:
    client.send("fly", id="f1")
    assert client.next("status")["id"] == "f1"
    client.send("set_level", level="none")
    client.send("fly", id="f2")
    assert client.collect(0.3) == []


def test_a_message_above_the_limit_ends_only_its_own_connection(
    client_of: Callable[[SimRobot], Client],
) -> None:
    small = config(server=ServerConfig(port=0, max_message_bytes=10_000))
    with SimRobot(small, KinematicArm) as robot:
        flooder, other = client_of(robot), client_of(robot)
        flooder.connection.send("x" * 20_000)
        other.subscribe(JOINTS, JOINTS_TYPE)
        assert other.next("publish")["topic"] == JOINTS
        with pytest.raises(Exception, match="1009"):
            flooder.next("publish")


def test_a_client_that_does_not_read_stalls_no_other(new_client: Connect) -> None:
    sleeper, other = new_client(), new_client()
    sleeper.subscribe(CAMERA, CAMERA_TYPE)
    other.subscribe(CAMERA, CAMERA_TYPE, compression="cbor")
    other.next("publish")
    assert_rate(len(other.collect(4.0)), 120)


def test_a_slow_client_gets_the_newest_messages(
    client_of: Callable[[SimRobot], Client],
) -> None:
    bounded = config(server=ServerConfig(port=0, backlog=4))
    big = np.random.default_rng(0).integers(0, 255, (1200, 1600, 3), dtype=np.uint8)
    picture = simplejpeg.encode_jpeg(big, quality=95)
    shown = 0

    class Counting(KinematicArm):
        def jpeg(self) -> bytes:
            nonlocal shown
            shown += 1
            return picture

    with SimRobot(bounded, Counting) as robot:
        client = client_of(robot)
        client.subscribe(CAMERA, CAMERA_TYPE, compression="cbor")
        wait_until(lambda: shown > 120, 60, "the pictures of 4 s")
        stamps: list[float] = []

        def is_new() -> bool:
            stamps.append(messages.read_stamp(client.next("publish")["msg"]["header"]))
            return robot.time_s() - stamps[-1] < 0.5

        wait_until(is_new, 20, "the newest")
        assert np.diff(stamps).max() > 1, "what could not be sent was dropped"


def test_the_view_is_rendered_for_subscribers_alone_and_beside_no_camera_picture(
    client_of: Callable[[SimRobot], Client],
) -> None:
    """Two pictures in one step would make the arm late."""
    calls: list[str] = []

    class Logging(KinematicArm):
        def step(self, target_rad: np.ndarray) -> None:
            calls.append("step")
            super().step(target_rad)

        def jpeg(self) -> bytes:
            calls.append("camera")
            return super().jpeg()

        def view_jpeg(self) -> bytes:
            calls.append("view")
            return super().view_jpeg()

    with SimRobot(config(), Logging) as robot:
        client = client_of(robot)
        client.subscribe(CAMERA, CAMERA_TYPE, throttle_rate=50)
        client.collect(0.3)
        assert "view" not in calls
        assert "camera" in calls
        client.subscribe(SIM_VIEW_TOPIC, CAMERA_TYPE)
        client.collect(1.5)
    steps = [{*step.split()} for step in " ".join(calls).split("step")]
    views = sum("view" in step for step in steps)
    assert views > 12
    assert sum(step == {"camera", "view"} for step in steps) < views / 4


def test_no_picture_is_made_that_nobody_will_get(
    client_of: Callable[[SimRobot], Client],
) -> None:
    class Counting(KinematicArm):
        pictures = 0

        def jpeg(self) -> bytes:
            Counting.pictures += 1
            time.sleep(0.02)  # as rendering does
            return super().jpeg()

    with SimRobot(config(), Counting) as robot:
        time.sleep(0.3)
        assert Counting.pictures == 0
        client = client_of(robot)
        for throttle_ms, rate_hz in ((80, 10), (55, 15), (0, 30)):
            client.subscribe(CAMERA, CAMERA_TYPE, id="a", throttle_rate=throttle_ms)
            client.next("publish")
            for _ in range(4):  # a busy machine is late sometimes, not always
                before = Counting.pictures
                received = len(client.collect(2.0))
                made = Counting.pictures - before
                if made <= 2 * rate_hz + 6:
                    break
            assert_rate(received, 2 * rate_hz)
            assert received - 1 <= made <= 2 * rate_hz + 6


def test_clients_that_come_and_go_leave_nothing_behind(robot: SimRobot) -> None:
    for _ in range(20):
        with connect(f"ws://127.0.0.1:{robot.port}") as connection:
            Client(connection).subscribe(CAMERA, CAMERA_TYPE)
    deadline = time.monotonic() + 3
    while robot.server.is_wanted(CAMERA) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not robot.server.is_wanted(CAMERA)


def test_closing_and_serving_again_on_the_same_port(
    client_of: Callable[[SimRobot], Client],
) -> None:
    with SimRobot(config(), KinematicArm) as robot:
        port = robot.port
        client_of(robot)
    with SimRobot(config(server=ServerConfig(port=port)), KinematicArm) as robot:
        client = client_of(robot)
        client.subscribe(JOINTS, JOINTS_TYPE)
        assert client.next("publish")["topic"] == JOINTS
