"""`--ros-version 1` against what a released ROS 1 rosbridge does, over real WebSockets."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from sim_robot_rig import Client, state_now
from websockets.sync.client import connect

from crane_x7_remote.rosbridge import messages
from crane_x7_remote.settings import Settings
from crane_x7_remote.sim_robot.arm import KinematicArm
from crane_x7_remote.sim_robot.robot import RobotConfig, SimRobot
from crane_x7_remote.sim_robot.server import ServerConfig
from crane_x7_vla_rl.robot import ARM_JOINT_NAMES, HOME_RAD

TOPICS = Settings()
CAMERA, JOINTS, ARM = TOPICS.camera_topic, TOPICS.joint_states_topic, TOPICS.arm_topic
JOINTS_TYPE, TRAJECTORY = "sensor_msgs/JointState", "trajectory_msgs/JointTrajectory"
GRIPPER = TOPICS.gripper_action


@pytest.fixture
def new_client(request: pytest.FixtureRequest) -> Iterator[Callable[[], Client]]:
    """Clients of a robot of ROS 1, or of the version that the test is given."""
    version = getattr(request, "param", 1)
    config = RobotConfig(server=ServerConfig(port=0), ros_version=version)
    with SimRobot(config, KinematicArm) as robot, ExitStack() as stack:
        url = f"ws://127.0.0.1:{robot.port}"
        yield lambda: Client(stack.enter_context(connect(url, max_size=None, close_timeout=1)))


@pytest.fixture
def client(new_client: Callable[[], Client]) -> Client:
    return new_client()


def trajectory(target: np.ndarray, **keys: int) -> dict[str, Any]:
    """Two points, the first where the arm is; `keys` are those of the second's time."""
    first = {"positions": HOME_RAD[:7].tolist(), "time_from_start": {}}
    second = {"positions": target.tolist(), "time_from_start": keys}
    return {"joint_names": list(ARM_JOINT_NAMES), "points": [first, second]}


def test_joint_states_never_come_as_cbor_and_nobody_is_told(
    new_client: Callable[[], Client], caplog: pytest.LogCaptureFixture
) -> None:
    binary, plain = new_client(), new_client()
    binary.subscribe(JOINTS, JOINTS_TYPE, compression="cbor", throttle_rate=0)
    plain.subscribe(JOINTS, JOINTS_TYPE)
    with caplog.at_level(logging.ERROR, "crane_x7_remote.sim_robot"):
        assert plain.next("publish")["topic"] == JOINTS
        assert binary.collect(1.0) == []
    assert [record.levelname for record in caplog.records].count("ERROR") <= 1
    binary.subscribe(CAMERA, "sensor_msgs/CompressedImage", compression="cbor")
    assert isinstance(binary.connection.recv(timeout=5), bytes), "pictures do come as CBOR"
    binary.subscribe(JOINTS, JOINTS_TYPE, compression="none")
    binary.send("unsubscribe", topic=CAMERA)
    binary.send("unsubscribe", topic=JOINTS)
    binary.subscribe(JOINTS, JOINTS_TYPE, compression="none")
    while binary.next("publish")["topic"] != JOINTS:
        pass


def test_the_echo_of_a_trajectory_comes_as_json_alone(new_client: Callable[[], Client]) -> None:
    driver, binary, plain = new_client(), new_client(), new_client()
    binary.subscribe(ARM, TRAJECTORY, compression="cbor")
    plain.subscribe(ARM, TRAJECTORY)
    time.sleep(0.2)
    driver.send("publish", topic=ARM, msg=trajectory(HOME_RAD[:7] + 0.1, secs=1))
    assert plain.next("publish")["msg"]["points"][1]["time_from_start"] == {"secs": 1, "nsecs": 0}
    assert binary.collect(0.3) == []


def test_times_of_ros_2_are_dropped_and_the_stamp_is_now(new_client: Callable[[], Client]) -> None:
    driver, recorder = new_client(), new_client()
    recorder.subscribe(ARM, TRAJECTORY)
    time.sleep(0.2)
    header = {"stamp": {"sec": 1_500_000_000, "nanosec": 0}, "frame_id": "vla/00000001/1/500"}
    path = trajectory(HOME_RAD[:7] + 0.1, sec=1, nanosec=0)
    driver.send("publish", topic=ARM, msg=path | {"header": header})
    echo = recorder.next("publish")["msg"]
    assert [point["time_from_start"] for point in echo["points"]] == [{"secs": 0, "nsecs": 0}] * 2
    assert messages.read_stamp(echo) == pytest.approx(time.time(), abs=3)
    assert echo["header"]["frame_id"] == "vla/00000001/1/500"
    assert state_now(driver)["controller"]["rejected"] == {"times": 1}


@pytest.mark.parametrize(
    ("new_client", "keys"),
    [(1, {"secs": 1, "nsecs": 0}), (2, {"secs": 1, "nsecs": 0}), (2, {"sec": 1, "nanosec": 0})],
    indirect=["new_client"],
)
def test_times_that_the_version_knows_drive(
    new_client: Callable[[], Client], keys: dict[str, int]
) -> None:
    driver = new_client()
    driver.send("publish", topic=ARM, msg=trajectory(HOME_RAD[:7] + 0.1, **keys))
    assert state_now(driver)["controller"]["accepted"] == 1


def test_a_field_that_the_type_does_not_have_refuses_the_message(client: Client) -> None:
    client.send("publish", topic=ARM, id="p", msg=trajectory(HOME_RAD[:7]) | {"speed": 1})
    status = client.next("status")
    assert (status["id"], status["level"]) == ("p", "error")
    assert "no field 'speed'" in status["msg"]
    assert state_now(client)["controller"]["rejected"] == {"malformed": 1}


def test_headers_count(new_client: Callable[[], Client]) -> None:
    client = new_client()
    client.subscribe(JOINTS, JOINTS_TYPE)
    seqs = [client.next("publish")["msg"]["header"]["seq"] for _ in range(5)]
    assert [later - sooner for sooner, later in itertools.pairwise(seqs)] == [1] * 4


@pytest.mark.parametrize("type_name", ["sensor_msgs/msg/JointState", "no_such_msgs/Thing"])
def test_a_type_that_it_cannot_load_is_refused(client: Client, type_name: str) -> None:
    client.subscribe(JOINTS, type_name)
    assert "unable to load type" in client.next("status")["msg"]
    assert client.collect(0.2) == []


@pytest.mark.parametrize("op", ["send_action_goal", "cancel_action_goal"])
def test_action_operations_are_unknown(client: Client, op: str) -> None:
    args = {"command": {"position": 0.5, "max_effort": 0.0}}
    client.send(op, id="g1", action=GRIPPER, action_type="control_msgs/GripperCommand", args=args)
    (answer,) = client.collect(0.5)
    assert (answer["op"], answer["id"]) == ("status", "g1")
    assert answer["msg"].startswith("Unknown operation")


class Gripper:
    """The gripper's action as a client on topics has it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        client.subscribe(f"{GRIPPER}/result", "control_msgs/GripperCommandActionResult")
        client.subscribe(f"{GRIPPER}/status", "actionlib_msgs/GoalStatusArray")

    def send(self, goal_id: str, position: object) -> None:
        goal = {"goal_id": {"id": goal_id}, "goal": {"command": {"position": position}}}
        self.client.send("publish", topic=f"{GRIPPER}/goal", msg=goal)

    def cancel(self, **fields: Any) -> None:
        self.client.send("publish", topic=f"{GRIPPER}/cancel", msg=fields)

    def result(self) -> tuple[str, int, dict[str, Any]]:
        """Goal's id, status and result of the next that ended."""
        while True:
            operation = self.client.next("publish")
            if operation["topic"] == f"{GRIPPER}/result":
                status = operation["msg"]["status"]
                return status["goal_id"]["id"], status["status"], operation["msg"]["result"]

    def statuses(self) -> dict[str, int]:
        while True:
            operation = self.client.next("publish")
            if operation["topic"] == f"{GRIPPER}/status":
                listed = operation["msg"]["status_list"]
                return {each["goal_id"]["id"]: each["status"] for each in listed}


def test_the_gripper_is_driven_on_topics(client: Client) -> None:
    gripper = Gripper(client)
    assert gripper.statuses() == {}
    gripper.send("g1", 0.8)
    goal_id, status, result = gripper.result()
    assert (goal_id, status, result["reached_goal"], result["stalled"]) == ("g1", 3, True, False)
    assert result["position"] == pytest.approx(0.8, abs=0.02)
    assert gripper.statuses() == {"g1": 3}
    gripper.send("", 0.4)
    goal_id, status, _ = gripper.result()
    assert goal_id, "a goal without an id gets one"
    assert status == 3


def test_the_newest_goal_wins_and_a_wrong_one_changes_nothing(client: Client) -> None:
    gripper = Gripper(client)
    gripper.send("g1", 1.5)
    gripper.send("g2", 0.4)
    gripper.send("g3", 99)
    assert gripper.result()[:2] == ("g1", 2)
    assert gripper.result()[:2] == ("g3", 5)
    assert gripper.result()[:2] == ("g2", 3)


@pytest.mark.parametrize("fields", [{}, {"id": "g1"}, {"stamp": {"secs": 2**31, "nsecs": 0}}])
def test_a_goal_is_cancelled(client: Client, fields: dict[str, Any]) -> None:
    gripper = Gripper(client)
    gripper.send("g1", 1.5)
    gripper.cancel(id="another")
    gripper.cancel(stamp={"secs": 1, "nsecs": 0})
    gripper.cancel(**fields)
    goal_id, status, result = gripper.result()
    assert (goal_id, status) == ("g1", 2)
    assert result["position"] < 1.2, "it stops where it is"


def test_a_goal_of_no_number_is_told_to_its_sender(client: Client) -> None:
    Gripper(client).send("g1", "wide")
    assert "goal.command.position" in client.next("status")["msg"]


def test_a_thousand_goals_leave_a_bounded_list(client: Client) -> None:
    gripper = Gripper(client)
    for number in range(1000):
        gripper.send(f"g{number}", 0.4 + number % 2 / 10)
    while "g999" not in (statuses := gripper.statuses()):
        pass
    assert len(statuses) <= 16
