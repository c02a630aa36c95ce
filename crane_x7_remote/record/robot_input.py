"""The robot's topics as events. rosbridge messages, on the network thread → a queue of `Event`.

Orders come on /vla/record; the recorder's state goes out on /vla/record_status.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from crane_x7_remote.record.events import Commanded, Event, Measured, Ordered, Picture, Told
from crane_x7_remote.rosbridge import frames, messages, protocol, record_status
from crane_x7_remote.rosbridge.client import RosbridgeClient
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_remote.rosbridge.messages import MessageError, ParsedTrajectory, StampedJoints
from crane_x7_remote.rosbridge.record_status import RecordStatus
from crane_x7_remote.rosbridge.topics import RECORD_STATUS_TOPIC, RECORD_TOPIC, STRING
from crane_x7_vla_rl.data.rosbags.align import Command
from crane_x7_vla_rl.robot import JOINT_NAMES

logger = logging.getLogger(__name__)

IMAGE: Final = "sensor_msgs/CompressedImage"
JOINTS: Final = "sensor_msgs/JointState"
TRAJECTORY: Final = "trajectory_msgs/JointTrajectory"


@dataclass(frozen=True)
class RobotTopics:
    """What is listened to; an empty name: not subscribed."""

    cameras: Mapping[str, str] = field(default_factory=dict)
    """Name → topic."""
    joint_states: str = ""
    leader: str = ""
    arm: str = ""
    trajectory: str = ""
    instruction: str = ""


class RobotInput:
    """Listens on one rosbridge connection; a context manager."""

    def __init__(
        self,
        client: ClientConfig,
        topics: RobotTopics,
        events: queue.SimpleQueue[Event],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._events, self._clock = events, clock
        self.client = RosbridgeClient(client, clock)
        self.refused: dict[str, str] = {}
        """Topic → why its last message could not be used."""
        listeners: list[tuple[str, str, Callable[[Mapping[str, Any]], Event | None]]] = [
            *((topic, IMAGE, self._picture(name)) for name, topic in topics.cameras.items()),
            (topics.joint_states, JOINTS, self._joints("robot")),
            (topics.leader, JOINTS, self._joints("leader")),
            (topics.arm, TRAJECTORY, self._trajectory(is_prediction=False)),
            (topics.trajectory, TRAJECTORY, self._trajectory(is_prediction=True)),
            (topics.instruction, STRING, lambda message: Told(messages.instruction(message))),
            (RECORD_TOPIC, STRING, lambda message: Ordered(record_status.word(message), "topic")),
        ]
        for topic, kind, read in listeners:
            if topic:
                # A released ROS 1 server cannot encode a JointState's names as CBOR.
                self.client.subscribe_throttled(
                    topic, kind, self._passes(topic, read),
                    compression="cbor" if kind == IMAGE else "none",
                )  # fmt: skip

    def __enter__(self) -> Self:
        self.client.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.client.close()

    def tell(self, status: RecordStatus) -> None:
        """Publish the recorder's state; dropped while the link is down."""
        self.client.tell(protocol.publish(RECORD_STATUS_TOPIC, status.message()))

    # --- network thread --------------------------------------------------------------------------

    def _passes(
        self, topic: str, read: Callable[[Mapping[str, Any]], Event | None]
    ) -> Callable[[Mapping[str, Any]], None]:
        def take(message: Mapping[str, Any]) -> None:
            try:
                event = read(message)
            except MessageError as error:
                self.refused[topic] = str(error)
                raise  # the client counts and logs it
            self.refused.pop(topic, None)
            if event is not None:
                self._events.put(event)

        return take

    def _picture(self, camera: str) -> Callable[[Mapping[str, Any]], Picture]:
        return lambda message: Picture(camera, frames.from_message(message, self._clock()))

    def _joints(self, arm: Any) -> Callable[[Mapping[str, Any]], Measured]:
        def read(message: Mapping[str, Any]) -> Measured:
            state = messages.joint_state(message)
            stamp_s = messages.read_stamp(message)
            return Measured(arm, StampedJoints(state, stamp_s, self._clock()))

        return read

    def _trajectory(self, is_prediction: bool) -> Callable[[Mapping[str, Any]], Commanded | None]:
        def read(message: Mapping[str, Any]) -> Commanded | None:
            parsed = messages.trajectory(message)
            command = as_command(parsed)
            if command is None:
                return None
            return Commanded(command, self._clock(), parsed.session, is_prediction)

        return read


def as_command(parsed: ParsedTrajectory) -> Command | None:
    """Return a trajectory's targets for the arm's joints; None if it moves none of them.

    Raises MessageError for points that are not finite, or not in order of time.
    """
    known = [column for column, name in enumerate(parsed.joint_names) if name in JOINT_NAMES]
    due, position = parsed.time_from_start_s, parsed.position_rad[:, known]
    if not known or not len(due):
        return None
    if not np.isfinite(position).all() or (np.diff(due) <= 0).any():
        raise MessageError("JointTrajectory has points that are not finite, or not in order")
    joints = tuple(JOINT_NAMES.index(parsed.joint_names[column]) for column in known)
    return Command(parsed.stamp_s, joints, due, position)
