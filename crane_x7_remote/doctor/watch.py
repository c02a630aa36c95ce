"""What a loop would see of the robot. Settings → `Sight`, after a few seconds on its topics.

The client is the loop's own, and only listens: nothing is advertised or published.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

from crane_x7_remote import settings_values
from crane_x7_remote.inference.link.guard_state import STATE_TOPIC, GuardState
from crane_x7_remote.rosbridge import loop_status
from crane_x7_remote.rosbridge.client import RosbridgeClient
from crane_x7_remote.rosbridge.config import ClientConfig, LinkStatus
from crane_x7_remote.rosbridge.frames import EncodedFrame
from crane_x7_remote.rosbridge.joint_watch import JointFault
from crane_x7_remote.rosbridge.loop_status import LoopStatus
from crane_x7_remote.rosbridge.messages import MessageError, StampedJoints
from crane_x7_remote.rosbridge.robot_clocks import ClockReport
from crane_x7_remote.rosbridge.topics import STATUS_TOPIC, STRING
from crane_x7_remote.settings import Settings

WATCH_S: Final = 4.0
"""Longer than SILENT_S of rosbridge/silence.py, after which a topic counts as silent."""
CONNECT_S: Final = 5.0
POLL_S: Final = 0.002


@dataclass(frozen=True, eq=False)
class Sight:
    """What came within WATCH_S."""

    link: LinkStatus
    clocks: ClockReport
    ahead_s: float | None
    """The robot's clock minus this machine's; the delay of the fastest message makes it smaller."""
    frames: int
    frame: EncodedFrame | None
    """The newest."""
    frame_age_s: float
    """Median age on arrival, by the camera's own clock."""
    wrist_frames: int
    wrist_frame: EncodedFrame | None
    """The newest of the wrist camera."""
    wrist_age_s: float
    """Median age on arrival, by the base camera's clock."""
    states: int
    joints: StampedJoints | None
    joints_age_s: float
    fault: JointFault | None
    guarded: bool
    stopped: str | None
    """Why the guard lets nothing pass."""
    loops: tuple[LoopStatus, ...]
    duration_s: float

    def rate_hz(self, count: int) -> float:
        """Return messages per second."""
        return count / self.duration_s


@dataclass
class _Heard:
    """What callbacks note on the network thread."""

    guard: GuardState = field(default_factory=GuardState)
    loops: dict[str, LoopStatus] = field(default_factory=dict)

    def hear_guard(self, message: Mapping[str, Any]) -> None:
        self.guard.hear(message, time.monotonic())

    def hear_loop(self, message: Mapping[str, Any]) -> None:
        try:
            status = loop_status.read(message)
        except MessageError:
            return
        self.loops[status.session] = status


def client_config(settings: Settings) -> ClientConfig:
    """Return what the loop's client would connect to."""
    return ClientConfig(
        host=settings.rosbridge_host,
        port=settings.rosbridge_port,
        proxy=settings.rosbridge_proxy,
        token=settings_values.token_text(settings.rosbridge_token, "ROSBRIDGE_TOKEN"),
        camera_topic=settings.camera_topic,
        wrist_camera_topic=settings.wrist_camera_topic or None,
        joint_states_topic=settings.joint_states_topic,
        instruction_topic=None,
    )


def watch(settings: Settings) -> Sight:
    """Listen for WATCH_S; raises PeerUnreachableError."""
    heard = _Heard()
    with RosbridgeClient(client_config(settings)) as client:
        client.subscribe(STATE_TOPIC, STRING, heard.hear_guard)
        client.subscribe(STATUS_TOPIC, STRING, heard.hear_loop)
        client.wait_connected(CONNECT_S)
        return _listen(client, heard)


class _Frames:
    """The images of one camera."""

    def __init__(self) -> None:
        self.newest: EncodedFrame | None = None
        self.ages_s: list[float] = []

    def note(self, frame: EncodedFrame | None, client: RosbridgeClient) -> None:
        if frame is not None and frame is not self.newest:
            self.newest = frame
            self.ages_s.append(client.frame_age_s(frame, frame.arrival_s))

    @property
    def age_s(self) -> float:
        return median(self.ages_s) if self.ages_s else 0.0


def _listen(client: RosbridgeClient, heard: _Heard) -> Sight:
    started_s = time.monotonic()
    base, wrist = _Frames(), _Frames()
    joints, states = None, 0
    while (now_s := time.monotonic()) < started_s + WATCH_S:
        base.note(client.latest_frame(), client)
        wrist.note(client.wrist_frame(), client)
        state = client.joints()
        if state is not None and state is not joints:
            joints, states = state, states + 1
        time.sleep(POLL_S)
    report = client.clocks(now_s)
    return Sight(
        link=client.link,
        clocks=report,
        ahead_s=None if report.robot_s is None else report.robot_s - time.time(),
        frames=len(base.ages_s),
        frame=base.newest,
        frame_age_s=base.age_s,
        wrist_frames=len(wrist.ages_s),
        wrist_frame=wrist.newest,
        wrist_age_s=wrist.age_s,
        states=states,
        joints=joints,
        joints_age_s=0.0 if joints is None else now_s - joints.arrival_s,
        fault=client.joint_fault(now_s),
        guarded=heard.guard.is_there(now_s),
        stopped=heard.guard.stopped(now_s),
        loops=tuple(heard.loops.values()),
        duration_s=now_s - started_s,
    )
