"""The robot's own camera pose: std_msgs/String on a latched topic -> `CameraPose`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crane_x7_remote.rosbridge.messages import MessageError
from crane_x7_remote.rosbridge.protocol import brief
from crane_x7_remote.rosbridge.topics import CAMERA_POSE_TOPIC
from crane_x7_vla_rl.camera_pose import CameraPose, CameraPoseError, parse_json


def read(message: Mapping[str, Any]) -> CameraPose:
    """Return the pose in a message; raises MessageError."""
    text = message.get("data")
    if not isinstance(text, str):
        raise MessageError(f"{CAMERA_POSE_TOPIC}: data is {brief(text)}, expected text")
    try:
        return parse_json(text)
    except CameraPoseError as error:
        raise MessageError(f"{CAMERA_POSE_TOPIC}: {error}") from error
