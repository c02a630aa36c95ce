"""The camera's pose for a policy that needs it: CAMERA_POSE, else the pose the robot publishes.

Setting, message on /vla/camera_pose -> the policy's `look_through`, or a `Hold` while unknown.
`hear` runs on the client's thread, the rest on the loop's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_remote.inference.link.ports import RobotClient
from crane_x7_remote.rosbridge import camera_pose
from crane_x7_remote.rosbridge.topics import CAMERA_POSE_TOPIC, STRING
from crane_x7_vla_rl.camera_pose import CameraPose
from crane_x7_vla_rl.policies.base import CameraUser, Policy
from crane_x7_vla_rl.types import Image

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Statement:
    """The pose that the robot behind one link published."""

    pose: CameraPose
    reconnects: int


class CameraWatch:
    """Gives one policy the camera's pose; does nothing for a policy that does not need it."""

    def __init__(
        self,
        client: RobotClient,
        policy: Policy,
        pose: CameraPose | None,
        forget: Callable[[], None],
    ) -> None:
        """`pose` is the operator's and overrides the robot's; `forget` makes the policy drop what
        it observed through another camera."""
        self._client = client
        self._policy = policy if isinstance(policy, CameraUser) else None
        self._forget = forget
        self._own = pose
        self._heard: _Statement | None = None
        self._used: CameraPose | None = None

    def listen(self) -> None:
        """Subscribe to the robot's camera pose if the policy needs it."""
        if self._policy is not None and self._own is None:
            self._client.subscribe(CAMERA_POSE_TOPIC, STRING, self.hear)

    def hear(self, message: Mapping[str, Any]) -> None:
        """Store the pose of a message; raises MessageError. Called on the client's thread."""
        self._heard = None
        self._heard = _Statement(camera_pose.read(message), self._client.link.reconnects)

    def hold(self, image: Image) -> Hold | None:
        """Give the policy the pose of the camera of `image`; return a Hold while it is unknown."""
        if self._policy is None:
            return None
        pose, heard = self._own, self._heard
        if pose is None and heard is not None and heard.reconnects == self._client.link.reconnects:
            pose = heard.pose
        if pose is None:
            return Hold(
                HoldReason.CAMERA_UNCONFIRMED,
                f"the camera's pose is unknown: the robot publishes none on"
                f" {CAMERA_POSE_TOPIC}; set CAMERA_POSE (--camera-pose) to a file like"
                " configs/camera_pose.yaml, or to sim for the simulated robot's camera",
            )
        height, width = image.shape[:2]
        misfit = pose.misfit(width, height)
        if misfit is not None:
            return Hold(HoldReason.CAMERA_UNCONFIRMED, f"{misfit} (CAMERA_POSE)")
        if pose != self._used:
            self._use(pose)
        return None

    def _use(self, pose: CameraPose) -> None:
        assert self._policy is not None
        source = "the robot" if self._own is None else "CAMERA_POSE"
        logger.info("camera position: %s m, from %s", _metres(pose), source)
        self._policy.look_through(pose)
        if self._used is not None:
            self._forget()
        self._used = pose


def _metres(pose: CameraPose) -> str:
    return "({:.3f}, {:.3f}, {:.3f})".format(*pose.position_m)
