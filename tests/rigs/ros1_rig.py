"""A server on a real socket that does what a released ROS 1 rosbridge does, as far as it matters.

Camera and joint states go out at 30 Hz with stamps of secs/nsecs; JointState, which holds a
string[], never arrives under cbor; of what is published the keys that ROS 1 does not know are
dropped, and so is every operation that it does not know, without a word.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from links import RecordingServer
from loop_rig import PICTURE

from crane_x7_remote.rosbridge import messages, protocol
from crane_x7_vla_rl.robot import HOME_RAD, JOINT_NAMES

CAMERA, JOINTS = "/camera/color/image_raw/compressed", "/joint_states"


class Ros1Bridge(RecordingServer):
    """`broken` holds the topics that never arrive under cbor."""

    def __init__(self, broken: tuple[str, ...] = (JOINTS,)) -> None:
        self.broken = broken
        self.picture: dict[str, Any] = {"format": "rgb8; jpeg compressed bgr8", "data": PICTURE}
        self.camera_version: messages.RosVersion = 1
        self.joints_version: messages.RosVersion = 1
        self.echo = True
        self._ends = threading.Event()
        self._echoed = 0
        super().__init__()
        self._publisher = threading.Thread(target=self._publish, daemon=True)
        self._publisher.start()

    def _publish(self) -> None:
        while not self._ends.wait(1 / 30):
            stamp_s = 1_700_000_000.0 + time.monotonic()
            header = messages.compressed_image(b"x", stamp_s, self.camera_version)["header"]
            self._offer(CAMERA, {"header": header} | self.picture)
            state = messages.joint_state_to_ros(
                JOINT_NAMES, HOME_RAD, [0.0] * 8, stamp_s, self.joints_version
            )
            self._offer(JOINTS, state)
            self._send_back()

    def compression(self, topic: str) -> str | None:
        """What the topic is subscribed with now; None: not at all."""
        state = None
        for operation in list(self.received):
            if operation.get("topic") == topic and operation["op"] == "subscribe":
                state = operation["compression"]
            elif operation.get("topic") == topic and operation["op"] == "unsubscribe":
                state = None
        return state

    def _offer(self, topic: str, message: dict[str, Any]) -> None:
        compression = self.compression(topic)
        operation = protocol.publish(topic, message)
        if compression == "none":
            self.send(protocol.encode_json(operation))
        elif compression == "cbor" and topic not in self.broken:
            self.send(protocol.encode_cbor(operation))

    def _send_back(self) -> None:
        topic = "/vla/predicted_trajectory"
        published = self.of("publish", topic)
        for operation in published[self._echoed :] if self.echo else []:
            self.send(protocol.encode_json(operation))
        self._echoed = len(published)

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._publisher.join(5)
        super().__exit__()
