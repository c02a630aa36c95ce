"""What is known about a robot and its loops. Topics of one rosbridge client → `View`.

`Watcher` keeps the newest of everything with its time of arrival; `view` is a snapshot of it.

Legend: 8 joints in the order of `robot.JOINT_NAMES`, rad.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal

from crane_x7_remote.inference.link.guard_state import STATE_TOPIC
from crane_x7_remote.rosbridge import frames, loop_status, messages
from crane_x7_remote.rosbridge.client import RosbridgeClient
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_remote.rosbridge.loop_status import LoopStatus
from crane_x7_remote.rosbridge.messages import MessageError
from crane_x7_remote.rosbridge.topics import STATUS_TOPIC, STRING
from crane_x7_remote.watch import guard_report
from crane_x7_remote.watch.guard_report import GuardReport
from crane_x7_vla_rl.log_text import shown
from crane_x7_vla_rl.types import Array

Camera = Literal["age", "rate", "off"]
AGE_THROTTLE_MS: Final = 1000
"""One image a second is enough to see that the camera runs, and leaves the link to the loop."""
JOINTS_THROTTLE_MS: Final = 100
"""Ten joint states a second; for the checks of each one, see the loop's holds."""
RATE_S: Final = 3.0
"""The camera's rate is that of this time."""
FORGET_S: Final = 5.0
"""A loop or a guard that was silent for longer has ended; they speak once a second."""
MOST_LOOPS: Final = 4
"""Loops that are shown; more than one is a mistake already."""


@dataclass(frozen=True)
class LoopView:
    """One loop and the age of its newest status."""

    status: LoopStatus
    age_s: float


@dataclass(frozen=True)
class CameraView:
    """One camera that is followed."""

    name: str
    """For people: camera, wrist camera."""
    age_s: float | None
    """Of the newest image; None before the first."""
    rate_hz: float | None
    """None: not measured."""
    problem: str | None
    """Why the newest image is of no use."""


@dataclass(frozen=True, eq=False)
class View:
    """Everything that is shown, at one moment."""

    address: str
    """Of rosbridge, host:port."""
    link_up: bool
    link_for_s: float
    """How long the link has been up, or down."""
    link_problem: str | None
    """Why it is down."""
    rtt_s: float | None
    loops: tuple[LoopView, ...]
    """The one that drives first."""
    guard: GuardReport | None
    guard_age_s: float | None
    joints_rad: Array | None
    """(8,)."""
    joints_age_s: float | None
    joints_problem: str | None
    """Why the newest joint state is of no use."""
    cameras: tuple[CameraView, ...]
    """The base camera first; none: cameras are not followed."""


class Watcher:
    """Follows one robot; connected between `start` and `close`."""

    def __init__(
        self,
        config: ClientConfig,
        camera: Camera,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`config` names the topics of the cameras and the joint states."""
        self._config, self._camera, self._clock = config, camera, clock
        self._statuses: dict[str, LoopView] = {}
        """Session → status; its `age_s` is the time of arrival."""
        self._guard: tuple[float, GuardReport] | None = None
        named = {"camera": config.camera_topic, "wrist camera": config.wrist_camera_topic}
        self._topics = {name: topic for name, topic in named.items() if topic and camera != "off"}
        """Name → topic of each camera that is followed."""
        self._frames_s: dict[str, deque[float]] = {
            topic: deque(maxlen=1000) for topic in self._topics.values()
        }
        """Topic → times of arrival of its images."""
        self._joints: tuple[float, Array] | None = None
        self._problems: dict[str, str] = {}
        """Topic → why its newest message is of no use; no entry after a usable one."""
        ours = replace(
            config, camera_topic=None, wrist_camera_topic=None, joint_states_topic=None,
            instruction_topic=None,
        )  # fmt: skip
        self.client = RosbridgeClient(ours, clock)
        self._subscribe()

    def _subscribe(self) -> None:
        config, client = self._config, self.client
        client.subscribe(STATUS_TOPIC, STRING, self._hear_status)
        client.subscribe(STATE_TOPIC, STRING, self._hear_guard)
        if config.joint_states_topic:
            client.subscribe_throttled(
                config.joint_states_topic,
                "sensor_msgs/JointState",
                self._hear_joints,
                JOINTS_THROTTLE_MS,
            )
        for topic in self._topics.values():
            client.subscribe_throttled(
                topic,
                "sensor_msgs/CompressedImage",
                partial(self._hear_frame, topic),
                AGE_THROTTLE_MS if self._camera == "age" else 0,
                "cbor",
            )

    def start(self, timeout_s: float) -> None:
        """Connect; raises PeerUnreachableError."""
        self.client.start()
        self.client.wait_connected(timeout_s)

    def close(self) -> None:
        """Disconnect."""
        self.client.close()

    def view(self) -> View:
        """Return what is known now; raises LinkFailedError if the connection's thread failed."""
        self.client.check()
        now_s, link, joints = self._clock(), self.client.link, self._joints
        guard = self._guard
        if guard is not None and now_s - guard[0] > FORGET_S:
            guard = None
        return View(
            address=f"{self._config.host}:{self._config.port}",
            link_up=link.connected,
            link_for_s=now_s - link.since_s,
            link_problem=None if link.connected else link.last_error,
            rtt_s=link.rtt_s,
            loops=self._loops(now_s),
            guard=None if guard is None else guard[1],
            guard_age_s=None if guard is None else now_s - guard[0],
            joints_rad=None if joints is None else joints[1],
            joints_age_s=None if joints is None else now_s - joints[0],
            joints_problem=self._problems.get(self._config.joint_states_topic or ""),
            cameras=tuple(
                self._camera_view(name, topic, now_s) for name, topic in self._topics.items()
            ),
        )

    def _camera_view(self, name: str, topic: str, now_s: float) -> CameraView:
        times_s = tuple(self._frames_s[topic])
        age_s = now_s - times_s[-1] if times_s else None
        return CameraView(name, age_s, self._rate_hz(times_s, now_s), self._problems.get(topic))

    def _loops(self, now_s: float) -> tuple[LoopView, ...]:
        heard = [
            LoopView(each.status, now_s - each.age_s)
            for each in dict(self._statuses).values()
            if now_s - each.age_s <= FORGET_S
        ]
        heard.sort(key=lambda each: (each.status.hold is not None, each.status.session))
        return tuple(heard[:MOST_LOOPS])

    def _rate_hz(self, times_s: Sequence[float], now_s: float) -> float | None:
        if self._camera != "rate":
            return None
        recent = [at_s for at_s in times_s if now_s - at_s <= RATE_S]
        if len(recent) < 2:
            return 0.0
        return (len(recent) - 1) / (recent[-1] - recent[0] or RATE_S)

    # --- network thread --------------------------------------------------------------------------

    def _hear_status(self, message: Mapping[str, Any]) -> None:
        status, now_s = loop_status.read(message), self._clock()
        known = {
            session: each
            for session, each in self._statuses.items()
            if now_s - each.age_s <= FORGET_S
        }
        if status.session in known or len(known) < 2 * MOST_LOOPS:
            self._statuses = known | {status.session: LoopView(status, now_s)}

    def _hear_guard(self, message: Mapping[str, Any]) -> None:
        self._guard = self._clock(), guard_report.read(message)

    def _hear_joints(self, message: Mapping[str, Any]) -> None:
        now_s = self._clock()
        with self._problem_noted(self._config.joint_states_topic):
            self._joints = now_s, messages.joint_state(message).position_rad

    def _hear_frame(self, topic: str, message: Mapping[str, Any]) -> None:
        now_s = self._clock()
        with self._problem_noted(topic):
            frames.from_message(message, now_s)  # raises for an image that no policy can use
            self._frames_s[topic].append(now_s)

    @contextlib.contextmanager
    def _problem_noted(self, topic: str | None) -> Iterator[None]:
        assert topic is not None  # it is subscribed
        try:
            yield
        except MessageError as error:
            self._problems[topic] = shown(error)
            raise
        self._problems.pop(topic, None)
