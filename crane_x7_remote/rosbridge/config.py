"""Options of a rosbridge client, the state of its link, and its subscriptions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from crane_x7_remote.rosbridge import protocol
from crane_x7_remote.rosbridge.connection import LinkConfig
from crane_x7_remote.rosbridge.messages import RosVersion


@dataclass(frozen=True)
class ClientConfig:
    """The robot's address, and the topics to subscribe and advertise."""

    host: str
    port: int = 9090
    proxy: str | None = None
    camera_topic: str | None = "/camera/color/image_raw/compressed"
    """None: no camera is subscribed."""
    wrist_camera_topic: str | None = None
    """A second camera; None: there is none."""
    joint_states_topic: str | None = "/joint_states"
    instruction_topic: str | None = "/vla/update_instruction"
    advertise: Mapping[str, str] = field(default_factory=dict)
    """Topic → type of the topics to advertise."""
    camera_throttle_ms: int | None = None
    """Fixed throttle of both cameras; None: adapted to the link."""
    max_message_bytes: int = protocol.MAX_MESSAGE_BYTES
    token: str | None = field(default=None, repr=False)
    """The token, if a guard in front of rosbridge requires one."""

    @property
    def link(self) -> LinkConfig:
        """The options for opening a connection."""
        return LinkConfig(
            self.host,
            self.port,
            self.proxy,
            max_message_bytes=self.max_message_bytes,
            token=self.token,
        )


@dataclass(frozen=True)
class LinkStatus:
    """A snapshot of the connection's state."""

    connected: bool
    since_s: float
    """Time of the last change of `connected`, on our monotonic clock."""
    reconnects: int
    rtt_s: float | None
    """Round trip of the last ping."""
    throttle_rate_ms: int
    dropped_publishes: int
    """Bundles that were dropped: not connected, or the previous one still being sent."""
    refused_messages: dict[str, int]
    """Received messages that could not be used, by kind."""
    last_error: str | None
    """Why the connection is down, or was the last time."""
    ros_version: RosVersion | None = None
    """The server's ROS version, from received stamps; None: unknown."""
    ros_version_doubt: str | None = None
    """Why the version is unknown."""
    no_frame_because: str | None = None
    """Why no camera frame arrives although the link is up: refused, or silent and what to check."""
    no_wrist_frame_because: str | None = None
    """The same for the wrist camera."""
    no_joints_because: str | None = None
    """The same for the joint states."""
    unknown_operations: tuple[str, ...] = ()
    """Operations of this client that the server reported as unknown."""


@dataclass(frozen=True)
class Subscription:
    """A topic that is subscribed again on every new connection."""

    id: str
    type_name: str
    compression: protocol.Compression = "none"
    throttle_ms: int = 0

    def request(
        self, topic: str, throttle_ms: int, compression: protocol.Compression | None = None
    ) -> protocol.Operation:
        """Return the subscribe operation; `compression` replaces the configured one."""
        return protocol.subscribe(
            topic,
            self.type_name,
            id=self.id,
            throttle_rate_ms=throttle_ms,
            compression=compression or self.compression,
        )
