"""Where the camera stands, for a policy that must know: CAMERA_POSE, else what the robot says.

Setting, message on /vla/camera_pose -> the policy's `look_through`, or a `Hold` until one is there.
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
    """What the robot behind one link said."""

    pose: CameraPose
    reconnects: int


class CameraWatch:
    """Tells one policy where the camera stands; does nothing for a policy that need not know."""

    def __init__(
        self,
        client: RobotClient,
        policy: Policy,
        pose: CameraPose | None,
        forget: Callable[[], None],
    ) -> None:
        """`pose` is the operator's and counts more than the robot's; `forget` makes the policy drop
        what it saw through another camera."""
        self._client = client
        self._policy = policy if isinstance(policy, CameraUser) else None
        self._forget = forget
        self._own = pose
        self._heard: _Statement | None = None
        self._used: CameraPose | None = None

    def listen(self) -> None:
        """Listen to what the robot says, where that is needed."""
        if self._policy is not None and self._own is None:
            self._client.subscribe(CAMERA_POSE_TOPIC, STRING, self.hear)

    def hear(self, message: Mapping[str, Any]) -> None:
        """Take the robot's statement; raises MessageError. Called on the client's thread."""
        self._heard = None
        self._heard = _Statement(camera_pose.read(message), self._client.link.reconnects)

    def hold(self, image: Image) -> Hold | None:
        """Tell the policy where the camera of `image` stands; a Hold while that is not known."""
        if self._policy is None:
            return None
        pose, heard = self._own, self._heard
        if pose is None and heard is not None and heard.reconnects == self._client.link.reconnects:
            pose = heard.pose
        if pose is None:
            return Hold(
                HoldReason.CAMERA_UNCONFIRMED,
                f"where the camera stands is not known: the robot says nothing on"
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
        logger.info("the camera stands at %s m, as %s says", _metres(pose), source)
        self._policy.look_through(pose)
        if self._used is not None:
            self._forget()
        self._used = pose


def _metres(pose: CameraPose) -> str:
    return "({:.3f}, {:.3f}, {:.3f})".format(*pose.position_m)
