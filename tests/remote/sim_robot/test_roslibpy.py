"""The independent client against our server: what roslibpy sends and reads, we serve.

Its reactor runs once per process and is never stopped here, so that other tests can use it too.
"""

from __future__ import annotations

import queue
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import roslibpy
from roslibpy.ros1 import actionlib

from crane_x7_remote.rosbridge import frames, messages
from crane_x7_remote.sim_robot.arm import KinematicArm
from crane_x7_remote.sim_robot.robot import RobotConfig, SimRobot
from crane_x7_remote.sim_robot.server import ServerConfig
from crane_x7_vla_rl.robot import ARM_JOINT_NAMES, HOME_RAD

JOINTS, CAMERA = "/joint_states", "/camera/color/image_raw/compressed"


@pytest.fixture(params=[1, 2])
def ros(request: pytest.FixtureRequest) -> Iterator[roslibpy.Ros]:
    config = RobotConfig(server=ServerConfig(port=0), ros_version=request.param)
    with SimRobot(config, KinematicArm) as robot:
        client = roslibpy.Ros("127.0.0.1", robot.port)
        client.run(5)
        yield client
        client.close()


def heard(ros: roslibpy.Ros, topic: str, kind: str, **options: Any) -> queue.Queue[dict[str, Any]]:
    arrived: queue.Queue[dict[str, Any]] = queue.Queue()
    roslibpy.Topic(ros, topic, kind, reconnect_on_close=False, **options).subscribe(arrived.put)
    return arrived


def test_it_reads_our_camera_and_joints(ros: roslibpy.Ros) -> None:
    pictures = heard(ros, CAMERA, "sensor_msgs/CompressedImage")
    joints = heard(ros, JOINTS, "sensor_msgs/JointState")
    frame = frames.from_message(pictures.get(timeout=5), 0.0)
    assert frames.decode_image(frame).shape == (480, 640, 3)
    assert frame.stamp_s == pytest.approx(time.time(), abs=2)
    state = messages.joint_state(joints.get(timeout=5))
    np.testing.assert_allclose(state.position_rad, HOME_RAD)


def test_its_throttle_is_kept(ros: roslibpy.Ros) -> None:
    throttled = heard(ros, JOINTS, "sensor_msgs/JointState", throttle_rate=200)
    throttled.get(timeout=5)
    time.sleep(2)
    assert 3 <= throttled.qsize() <= 10


def test_its_trajectory_moves_the_arm(ros: roslibpy.Ros) -> None:
    topic = "/crane_x7_arm_controller/joint_trajectory"
    recorder = heard(ros, topic, "trajectory_msgs/JointTrajectory")
    publisher = roslibpy.Topic(
        ros, topic, "trajectory_msgs/JointTrajectory", reconnect_on_close=False
    )
    target = (HOME_RAD[:7] + 0.1).tolist()
    point = {"positions": target, "time_from_start": {"secs": 0, "nsecs": 200_000_000}}
    header = {"stamp": {"secs": 0, "nsecs": 0}, "frame_id": ""}
    message = {"header": header, "joint_names": list(ARM_JOINT_NAMES), "points": [point]}
    publisher.publish(roslibpy.Message(message))
    assert recorder.get(timeout=5)["points"][0]["positions"] == target
    joints = heard(ros, JOINTS, "sensor_msgs/JointState", throttle_rate=50)
    deadline = time.monotonic() + 5
    while True:
        position = messages.joint_state(joints.get(timeout=5)).position_rad[:7]
        if np.abs(position - target).max() < 1e-3:
            break
        assert time.monotonic() < deadline, "the arm did not arrive"


@pytest.mark.parametrize("ros", [2], indirect=True)
def test_its_gripper_goal_is_answered(ros: roslibpy.Ros) -> None:
    results: queue.Queue[Any] = queue.Queue()
    gripper = roslibpy.ActionClient(
        ros, "/crane_x7_gripper_controller/gripper_cmd", "control_msgs/action/GripperCommand"
    )
    goal = roslibpy.Goal({"command": {"position": 0.5, "max_effort": 0.0}})
    gripper.send_goal(goal, results.put, lambda _: None, results.put)
    result = results.get(timeout=5)
    assert result["values"]["reached_goal"] is True


@pytest.mark.parametrize("ros", [1], indirect=True)
def test_its_actionlib_client_drives_the_gripper_of_ros_1(ros: roslibpy.Ros) -> None:
    client = actionlib.ActionClient(
        ros, "/crane_x7_gripper_controller/gripper_cmd", "control_msgs/GripperCommandAction"
    )
    goal = actionlib.Goal(client, {"command": {"position": 0.5, "max_effort": 0.0}})
    goal.send()
    result = goal.wait(5)
    assert result["reached_goal"] is True
    assert result["position"] == pytest.approx(0.5, abs=0.02)
    assert goal.status["status"] == actionlib.GoalStatus.SUCCEEDED


def test_it_leaves_and_comes_back(ros: roslibpy.Ros) -> None:
    first = heard(ros, JOINTS, "sensor_msgs/JointState")
    first.get(timeout=5)
    topic = roslibpy.Topic(ros, JOINTS, "sensor_msgs/JointState", reconnect_on_close=False)
    topic.subscribe(lambda _: None)
    topic.unsubscribe()
    again = heard(ros, JOINTS, "sensor_msgs/JointState")
    assert again.get(timeout=5)["name"]


CHECK = "import roslibpy; c=roslibpy.Ros('localhost',{port}); c.run(); print(c.is_connected)"


def test_the_check_of_older_documents_prints_true() -> None:
    """As printed there, with this server's port for 9090."""
    with SimRobot(RobotConfig(server=ServerConfig(port=0)), KinematicArm) as robot:
        done = subprocess.run(
            [sys.executable, "-c", CHECK.format(port=robot.port)],
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
