"""An observer on rosbridge: images, joints, targets and the true scene of a run → `Recording`.

Messages are appended on the client's network thread; `Recording` is read after the run, so that
nothing is decoded or encoded while the loop runs.

Legend: K joint states recorded; 8 joints in the order of robot.JOINT_NAMES, rad. Times in s on the
robot's clock; video and report count from the loop's start (`Recording.start_s`).
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crane_x7_remote.guard.rules import STATE_TOPIC
from crane_x7_remote.rosbridge import frames, messages, protocol
from crane_x7_remote.rosbridge.client import RosbridgeClient
from crane_x7_remote.rosbridge.clock import ClockOffset
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_remote.rosbridge.frames import EncodedFrame
from crane_x7_remote.rosbridge.messages import MessageError, ParsedTrajectory
from crane_x7_remote.settings import Settings
from crane_x7_remote.sim_robot.robot import (
    SIM_HAND_TOPIC,
    SIM_STATE_TOPIC,
    SIM_TARGETS_TOPIC,
    SIM_VIEW_TOPIC,
)
from crane_x7_vla_rl.types import Array

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hand:
    """A hand took a cube from the fingers and put it back at its start position."""

    time_s: float
    colour: str
    from_m: tuple[float, ...] | None
    to_m: tuple[float, ...] | None
    """Positions in the world, None if unknown."""


@dataclass(eq=False)
class Recording:
    """The recorded messages, in the order of arrival."""

    frames: list[EncodedFrame] = field(default_factory=list)
    """Frames of the policy's camera."""
    views: list[EncodedFrame] = field(default_factory=list)
    """Frames of the camera that shows the whole arm."""
    joint_times_s: list[float] = field(default_factory=list)
    joint_rad: list[Array] = field(default_factory=list)
    """K arrays (8,)."""
    target_times_s: list[float] = field(default_factory=list)
    target_rad: list[Array] = field(default_factory=list)
    """Arrays (8,): the targets of the robot's controllers at each step."""
    trajectories: list[ParsedTrajectory] = field(default_factory=list)
    """Messages of /vla/predicted_trajectory; each is stamped with the time of its image."""
    arrivals_s: list[float] = field(default_factory=list)
    """When each trajectory came."""
    instructions: list[tuple[float, str]] = field(default_factory=list)
    """(start time, instruction)."""
    hands: list[Hand] = field(default_factory=list)

    @property
    def start_s(self) -> float:
        """When the loop started: its first trajectory; without one, the first frame."""
        if self.arrivals_s:
            return self.arrivals_s[0]
        return min((items[0].stamp_s for items in (self.views, self.frames) if items), default=0.0)

    def measured(self) -> tuple[Array, Array]:
        """Return times (K,) and positions (K, 8)."""
        return np.array(self.joint_times_s), np.array(self.joint_rad).reshape(-1, 8)

    def commanded(self) -> tuple[Array, Array]:
        """Return times and positions (·, 8) of the controllers' targets."""
        return np.array(self.target_times_s), np.array(self.target_rad).reshape(-1, 8)


class RunRecorder:
    """Listens on rosbridge; a context manager."""

    def __init__(
        self,
        port: int,
        names: Settings,
        camera_period_ms: int = 66,
        with_view: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`names` gives the topics; at most one frame per `camera_period_ms` is kept. `with_view`:
        also record the camera that shows the whole arm, which costs rendering."""
        self.recording = Recording()
        self.started_s: float | None = None
        """When the first trajectory came, on the recorder's `clock`."""
        self._clock = clock
        self._robot_clock = ClockOffset()
        self._first_places: dict[str, tuple[float, ...]] = {}
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
        if with_view:
            subscribe(
                SIM_VIEW_TOPIC, "sensor_msgs/CompressedImage", self._on_view, camera_period_ms,
                "cbor",
            )  # fmt: skip
        subscribe(names.joint_states_topic, "sensor_msgs/JointState", self._on_joints)
        subscribe(SIM_TARGETS_TOPIC, "sensor_msgs/JointState", self._on_targets)
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
        """Publish an instruction, and let a hand put cubes of these colours back at their start
        positions; return False if neither could be sent now."""
        operations = [
            *(protocol.publish(SIM_HAND_TOPIC, messages.string(colour)) for colour in put_back),
            protocol.publish(self._names.instruction_topic, messages.string(instruction)),
        ]
        places = _places(self.scene)
        if not self.client.publish(operations):
            return False
        self.note_instruction(instruction)
        now_s = self._robot_time()
        self.recording.hands += [
            Hand(now_s, colour, places.get(colour), self._first_places.get(colour))
            for colour in put_back
        ]
        return True

    def note_instruction(self, instruction: str) -> None:
        """Record that the loop gets this instruction now."""
        self.recording.instructions.append((self._robot_time(), instruction))

    def _robot_time(self) -> float:
        """Return the robot's clock now; 0 before its first message."""
        return self._robot_clock.robot_time(self._clock()) or 0.0

    def _on_frame(self, message: Mapping[str, Any]) -> None:
        self.recording.frames.append(frames.from_message(message, self._clock()))

    def _on_view(self, message: Mapping[str, Any]) -> None:
        self.recording.views.append(frames.from_message(message, self._clock()))

    def _on_joints(self, message: Mapping[str, Any]) -> None:
        state, stamp_s = messages.joint_state(message), messages.read_stamp(message)
        self._robot_clock.observe(stamp_s, self._clock())
        self.recording.joint_times_s.append(stamp_s)
        self.recording.joint_rad.append(state.position_rad)

    def _on_targets(self, message: Mapping[str, Any]) -> None:
        state = messages.joint_state(message)
        self.recording.target_times_s.append(messages.read_stamp(message))
        self.recording.target_rad.append(state.position_rad)

    def _on_trajectory(self, message: Mapping[str, Any]) -> None:
        trajectory, now_s = messages.trajectory(message), self._clock()
        self.recording.trajectories.append(trajectory)
        self.recording.arrivals_s.append(self._robot_clock.robot_time(now_s) or trajectory.stamp_s)
        if self.started_s is None:
            self.started_s = now_s

    def _on_scene(self, message: Mapping[str, Any]) -> None:
        scene = _json(SIM_STATE_TOPIC, message)
        with self._lock:
            self._scene = scene
        if not self._first_places:
            self._first_places = _places(scene)

    def _on_guard(self, message: Mapping[str, Any]) -> None:
        state = _json(STATE_TOPIC, message)
        with self._lock:
            self._guard = state


def _places(scene: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    cubes = scene.get("cubes", {})
    return {colour: tuple(cube["position_m"]) for colour, cube in cubes.items()}


def _json(topic: str, message: Mapping[str, Any]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(message["data"])
    except (KeyError, TypeError, ValueError) as error:
        raise MessageError(f"{topic} is not JSON: {error}") from error
    return found
