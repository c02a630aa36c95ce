"""An observer on rosbridge. Pictures, joints, targets and the true scene of a run → `Recording`.

Messages are appended on the client's network thread; `Recording` is read after the run, so that
nothing is decoded or encoded while the loop works.

Legend: K joint states recorded, M trajectories; 8 joints in the order of robot.JOINT_NAMES, rad;
times in s on the robot's clock.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crane_x7_remote.guard.rules import STATE_TOPIC
from crane_x7_remote.rosbridge import frames, messages, protocol
from crane_x7_remote.rosbridge.client import RosbridgeClient
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_remote.rosbridge.frames import EncodedFrame
from crane_x7_remote.rosbridge.messages import MessageError, ParsedTrajectory
from crane_x7_remote.settings import Settings
from crane_x7_remote.sim_robot.robot import SIM_HAND_TOPIC, SIM_STATE_TOPIC
from crane_x7_vla_rl.types import Array

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Recording:
    """What was seen, in the order in which it came."""

    frames: list[EncodedFrame] = field(default_factory=list)
    joint_times_s: list[float] = field(default_factory=list)
    joint_rad: list[Array] = field(default_factory=list)
    """K arrays (8,)."""
    trajectories: list[ParsedTrajectory] = field(default_factory=list)
    """M of /vla/predicted_trajectory."""
    instructions: list[tuple[float, str]] = field(default_factory=list)
    """(time on the robot's clock, instruction given from then on)."""

    def measured(self) -> tuple[Array, Array]:
        """Return times (K,) and positions (K, 8)."""
        return np.array(self.joint_times_s), np.array(self.joint_rad).reshape(-1, 8)

    def commanded(self) -> tuple[Array, Array]:
        """Return times and positions (·, 8) of the points in force: each trajectory's, up to the
        stamp from which the next one replaces it."""
        times: list[float] = []
        positions: list[Array] = []
        starts = [item.stamp_s + item.time_from_start_s[0] for item in self.trajectories]
        ends = [*starts, float("inf")][1:]
        for item, end in zip(self.trajectories, ends, strict=True):
            for offset, position in zip(item.time_from_start_s, item.position_rad, strict=True):
                if item.stamp_s + offset < end:
                    times.append(item.stamp_s + float(offset))
                    positions.append(position)
        return np.array(times), np.array(positions).reshape(-1, 8)


class RunRecorder:
    """Listens on rosbridge; a context manager."""

    def __init__(self, port: int, names: Settings, camera_period_ms: int = 66) -> None:
        """`names` gives the topics; a picture is kept at most each `camera_period_ms`."""
        self.recording = Recording()
        self._scene: dict[str, Any] = {}
        self._guard: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._names = names
        config = ClientConfig(
            "127.0.0.1",
            port,
            camera_topic=None,
            instruction_topic=None,
            joint_states_topic=None,
            advertise={
                names.instruction_topic: "std_msgs/String",
                SIM_HAND_TOPIC: "std_msgs/String",
            },
        )
        self.client = RosbridgeClient(config)
        subscribe = self.client.subscribe_throttled
        subscribe(
            names.camera_topic, "sensor_msgs/CompressedImage", self._on_frame, camera_period_ms,
            "cbor",
        )  # fmt: skip
        subscribe(names.joint_states_topic, "sensor_msgs/JointState", self._on_joints)
        subscribe(names.trajectory_topic, "trajectory_msgs/JointTrajectory", self._on_trajectory)
        subscribe(SIM_STATE_TOPIC, "std_msgs/String", self._on_scene)
        subscribe(STATE_TOPIC, "std_msgs/String", self._on_guard)

    def __enter__(self) -> RunRecorder:
        self.client.start()
        self.client.wait_connected(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    @property
    def scene(self) -> dict[str, Any]:
        """The newest /sim/state; empty before the first."""
        with self._lock:
            return self._scene

    @property
    def guard(self) -> dict[str, Any]:
        """The newest state of the guard; empty before the first."""
        with self._lock:
            return self._guard

    def say(self, instruction: str, put_back: Sequence[str] = ()) -> bool:
        """Publish an instruction, and let a hand put cubes of these colours back where they lay;
        False when neither could be sent now."""
        operations = [
            *(protocol.publish(SIM_HAND_TOPIC, messages.string(colour)) for colour in put_back),
            protocol.publish(self._names.instruction_topic, messages.string(instruction)),
        ]
        if not self.client.publish(operations):
            return False
        self.note_instruction(instruction)
        return True

    def note_instruction(self, instruction: str) -> None:
        """Remember that the loop has been given this instruction now."""
        times = self.recording.joint_times_s
        self.recording.instructions.append((times[-1] if times else 0.0, instruction))

    def _on_frame(self, message: Mapping[str, Any]) -> None:
        self.recording.frames.append(frames.from_message(message, 0.0))

    def _on_joints(self, message: Mapping[str, Any]) -> None:
        state = messages.joint_state(message)
        self.recording.joint_times_s.append(messages.read_stamp(message))
        self.recording.joint_rad.append(state.position_rad)

    def _on_trajectory(self, message: Mapping[str, Any]) -> None:
        self.recording.trajectories.append(messages.trajectory(message))

    def _on_scene(self, message: Mapping[str, Any]) -> None:
        scene = _json(SIM_STATE_TOPIC, message)
        with self._lock:
            self._scene = scene

    def _on_guard(self, message: Mapping[str, Any]) -> None:
        state = _json(STATE_TOPIC, message)
        with self._lock:
            self._guard = state


def _json(topic: str, message: Mapping[str, Any]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(message["data"])
    except (KeyError, TypeError, ValueError) as error:
        raise MessageError(f"{topic} holds no JSON: {error}") from error
    return found
