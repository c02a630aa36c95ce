"""ROS messages → arrays: joints by name, images, trajectories, stamps.

Messages are objects of the package `rosbags`; arrays have the order of `robot.JOINT_NAMES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from crane_x7_vla_rl.data.reader_options import RecordingError
from crane_x7_vla_rl.data.rosbags.align import Array, Command
from crane_x7_vla_rl.images import JPEG_START, PNG_SIGNATURE
from crane_x7_vla_rl.joint_names import JointsError, places_of_joints
from crane_x7_vla_rl.robot import JOINT_NAMES
from crane_x7_vla_rl.types import Image

COMPRESSED: Final = "sensor_msgs/msg/CompressedImage"
RAW: Final = "sensor_msgs/msg/Image"
JOINTS: Final = "sensor_msgs/msg/JointState"
TRAJECTORY: Final = "trajectory_msgs/msg/JointTrajectory"
TEXT: Final = "std_msgs/msg/String"
SENSELESS_RAD: Final = 1e6
"""No joint turns this far, but damaged bytes may read as such numbers. NaN is not below it
either."""
CHANNELS: Final = {"rgb8": (0, 1, 2), "bgr8": (2, 1, 0), "rgba8": (0, 1, 2), "bgra8": (2, 1, 0)}
"""Encoding → positions of red, green and blue in a pixel. [sensor_msgs/image_encodings.hpp]"""


def stamp_ns(message: Any) -> int:
    """Return a message's header stamp in ns, 0 without one."""
    header = getattr(message, "header", None)
    return 0 if header is None else int(header.stamp.sec) * 10**9 + int(header.stamp.nanosec)


def joint_row(message: Any, joints: Sequence[str] = JOINT_NAMES) -> Array:
    """Return (8,) float64 positions of a JointState, in rad; of another robot those of `joints`.

    Raises JointsError if one of the arm's joints is missing, named twice or not finite; readers
    skip such messages, as the live loop does.
    """
    positions = np.asarray(message.position, dtype=np.float64)
    row = positions[places_of_joints(list(message.name), len(positions), joints)]
    broken = np.flatnonzero(~(np.abs(row) < SENSELESS_RAD))
    if len(broken):
        raise JointsError(f"{joints[broken[0]]} is {row[broken[0]]}, expected rad")
    return row


def command(message: Any, time_s: float, where: str, topic: str) -> Command:
    """Return a JointTrajectory whose time starts at `time_s`, without joints of other robots.

    Raises RecordingError if it moves none of the arm's joints, or its points are not finite or not
    in order.
    """
    names = list(message.joint_names)
    known = [column for column, name in enumerate(names) if name in JOINT_NAMES]
    if not known:
        raise RecordingError(where, topic, f"moves {', '.join(names)}, none of the arm's joints")
    due = np.array(
        [
            point.time_from_start.sec + point.time_from_start.nanosec * 1e-9
            for point in message.points
        ]
    )
    rows = [np.asarray(point.positions, dtype=np.float64) for point in message.points]
    wrong = next((len(row) for row in rows if len(row) != len(names)), None)
    if wrong is not None:
        raise RecordingError(where, topic, f"has a point of {wrong} positions, {len(names)} names")
    positions = np.array(rows, dtype=np.float64).reshape(len(rows), len(names))[:, known]
    if not (np.abs(positions) < SENSELESS_RAD).all() or (np.diff(due) <= 0).any():
        raise RecordingError(
            where, topic, "has points that are not finite, or not in order of time"
        )
    return Command(time_s, tuple(JOINT_NAMES.index(names[at]) for at in known), due, positions)


def picture(message: Any, where: str, topic: str) -> bytes | Image:
    """Return the JPEG or PNG of a CompressedImage, or (H, W, 3) uint8 RGB of an Image.

    Raises RecordingError for another kind of image.
    """
    if hasattr(message, "format"):
        content = bytes(message.data)
        if not content.startswith((JPEG_START, PNG_SIGNATURE)):
            raise RecordingError(
                where, topic,
                f'of format "{message.format}" begins with {content[:8]!r}, expected'
                " JPEG or PNG",
            )  # fmt: skip
        return content
    order = CHANNELS.get(message.encoding)
    if order is None:
        raise RecordingError(
            where, topic, f'has encoding "{message.encoding}", expected {", ".join(CHANNELS)}'
        )
    depth = 4 if "a" in message.encoding else 3
    rows = np.asarray(message.data, dtype=np.uint8)
    if len(rows) != message.height * message.step or message.step < message.width * depth:
        raise RecordingError(
            where, topic, f"has {len(rows)} bytes, expected {message.height}×{message.step}"
        )
    pixels = rows.reshape(message.height, message.step)[:, : message.width * depth]
    return np.ascontiguousarray(pixels.reshape(message.height, message.width, depth)[..., order])
