"""ROS 2 bags for tests, written with `rosbags`: a camera at one rate, joints at another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from tfrecord_rig import picture

from crane_x7_vla_rl.robot import JOINT_NAMES

CAMERA = "/camera/color/image_raw/compressed"
JOINTS = "/joint_states"
LEADER = "/teleop/leader/state"
TRAJECTORY = "/vla/predicted_trajectory"
ARM = "/crane_x7_arm_controller/joint_trajectory"
INSTRUCTION = "/vla/update_instruction"
STORE = get_typestore(Stores.ROS2_HUMBLE)
START_S = 1_780_000_000.0

Sent = tuple[float, str, Any]
"""Time in s after the start, topic, message."""


def build(kind: str, **fields: Any) -> Any:
    package, name = kind.split("/")
    return STORE.types[f"{package}/msg/{name}"](**fields)


def stamp(time_s: float) -> Any:
    ns = round((START_S + time_s) * 1e9)
    return build("builtin_interfaces/Time", sec=ns // 10**9, nanosec=ns % 10**9)


def header(time_s: float | None) -> Any:
    when = build("builtin_interfaces/Time", sec=0, nanosec=0) if time_s is None else stamp(time_s)
    return build("std_msgs/Header", stamp=when, frame_id="base")


def joints_at(time_s: float) -> npt.NDArray[np.float64]:
    """(8,) where the arm of these bags is: each joint at its own slow speed."""
    return np.array([0, 0.4, 0, -1.9, 0, -0.8, 1.5, 0.1]) + 0.01 * np.arange(1, 9) * time_s


def joint_state(
    time_s: float,
    *,
    stamped: bool = True,
    names: Sequence[str] = (*reversed(JOINT_NAMES), "crane_x7_gripper_finger_b_joint"),
    positions: Sequence[float] | None = None,
    ahead_s: float = 0.0,
) -> Any:
    """A JointState in another order, with a joint that is not ours."""
    here = dict(zip(JOINT_NAMES, joints_at(time_s + ahead_s), strict=True))
    values = [here.get(name, 9.0) for name in names] if positions is None else positions
    empty = np.array([], np.float64)
    return build(
        "sensor_msgs/JointState",
        header=header(time_s if stamped else None),
        name=list(names),
        position=np.array(values, np.float64),
        velocity=empty,
        effort=empty,
    )


def compressed(time_s: float, content: bytes, *, stamped: bool = True) -> Any:
    return build(
        "sensor_msgs/CompressedImage",
        header=header(time_s if stamped else None),
        format="rgb8; jpeg compressed bgr8",
        data=np.frombuffer(content, np.uint8),
    )


def raw_image(time_s: float, pixels: npt.NDArray[np.uint8], encoding: str) -> Any:
    height, width = pixels.shape[:2]
    padded = np.zeros((height, width * pixels.shape[2] + 5), np.uint8)
    padded[:, : width * pixels.shape[2]] = pixels.reshape(height, -1)
    return build(
        "sensor_msgs/Image",
        header=header(time_s),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=padded.shape[1],
        data=padded.ravel(),
    )


def trajectory(
    time_s: float | None, names: Sequence[str], points: Sequence[tuple[float, Sequence[float]]]
) -> Any:
    empty = np.array([], np.float64)
    return build(
        "trajectory_msgs/JointTrajectory",
        header=header(time_s),
        joint_names=list(names),
        points=[
            build(
                "trajectory_msgs/JointTrajectoryPoint",
                positions=np.array(position, np.float64),
                velocities=empty,
                accelerations=empty,
                effort=empty,
                time_from_start=build(
                    "builtin_interfaces/Duration", sec=int(due), nanosec=round(due % 1 * 1e9)
                ),
            )
            for due, position in points
        ],
    )


def text(words: str) -> Any:
    return build("std_msgs/String", data=words)


@dataclass(frozen=True)
class Scene:
    """What is recorded: the camera's pictures tell their number by their green, 4 × it."""

    seconds: float = 2.0
    camera_hz: float = 30.0
    joints_hz: float = 100.0
    instruction: str | None = "pick up the red cube"
    joints_delay_s: float = 0.0
    """The recorder starts to hear joints this much later."""
    stamped: bool = True

    def but(self, **changes: Any) -> Scene:
        return replace(self, **changes)

    def sent(self) -> list[Sent]:
        pictures = [
            number / self.camera_hz for number in range(round(self.seconds * self.camera_hz))
        ]
        states = [number / self.joints_hz for number in range(round(self.seconds * self.joints_hz))]
        sent: list[Sent] = [
            (time, CAMERA, compressed(time, picture(4 * at), stamped=self.stamped))
            for at, time in enumerate(pictures)
        ]
        sent += [
            (time, JOINTS, joint_state(time, stamped=self.stamped))
            for time in states
            if time >= self.joints_delay_s
        ]
        if self.instruction is not None:
            sent.append((0.0, INSTRUCTION, text(self.instruction)))
        return sent


def write_bag(
    path: Path,
    sent: Sequence[Sent],
    *,
    storage: StoragePlugin = StoragePlugin.MCAP,
    configure: Callable[[Writer], None] = lambda _: None,
    latency_s: Callable[[Sent], float] = lambda _: 0.004,
) -> Path:
    """Write a bag folder; each message is received `latency_s` after it was sent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = Writer(path, version=9, storage_plugin=storage)
    configure(writer)
    with writer:
        connections = {}
        for entry in sorted(sent, key=lambda entry: entry[0]):
            time_s, topic, message = entry
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            received = round((START_S + time_s + latency_s(entry)) * 1e9)
            writer.write(connections[topic], received, STORE.serialize_cdr(message, kind))
    return path
