"""Options of a rosbridge client, the state of its link, and its subscriptions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from crane_x7_remote.rosbridge import protocol
from crane_x7_remote.rosbridge.connection import LinkConfig
from crane_x7_remote.rosbridge.messages import RosVersion


@dataclass(frozen=True)
class ClientConfig:
    """Where the robot is and what to take from it."""

    host: str
    port: int = 9090
    proxy: str | None = None
    camera_topic: str | None = "/camera/color/image_raw/compressed"
    """None: no camera is subscribed."""
    joint_states_topic: str | None = "/joint_states"
    instruction_topic: str | None = "/vla/update_instruction"
    advertise: Mapping[str, str] = field(default_factory=dict)
    """Topic → type of what will be published."""
    camera_throttle_ms: int | None = None
    """Fixed throttle of the camera; None: adapted to the link."""
    max_message_bytes: int = protocol.MAX_MESSAGE_BYTES
    token: str | None = field(default=None, repr=False)
    """The token that a guard before rosbridge requires, if it does."""

    @property
    def link(self) -> LinkConfig:
        """The part that opens a connection."""
        return LinkConfig(
            self.host,
            self.port,
            self.proxy,
            max_message_bytes=self.max_message_bytes,
            token=self.token,
        )


@dataclass(frozen=True)
class LinkStatus:
    """State of the connection, a snapshot."""

    connected: bool
    since_s: float
    """When it came up or went down, on our monotonic clock."""
    reconnects: int
    rtt_s: float | None
    """Round trip of the last ping."""
    throttle_rate_ms: int
    dropped_publishes: int
    """Bundles that were dropped: not connected, or the one before still on its way."""
    refused_messages: dict[str, int]
    """Messages that came and could not be used, by kind."""
    last_error: str | None
    """Why the connection is down, or why it last was."""
    ros_version: RosVersion | None = None
    """Which ROS the server belongs to, by the stamps that come in; None: not known."""
    ros_version_doubt: str | None = None
    """Why it is not known."""
    no_frame_because: str | None = None
    """Why no camera frame comes although the link is up: refused, or silent and what to check."""
    no_joints_because: str | None = None
    """The same for the joint states."""
    unknown_operations: tuple[str, ...] = ()
    """Operations of ours that the server said it does not know."""


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
        """Return the operation that subscribes it; `compression` where it is another by now."""
        return protocol.subscribe(
            topic,
            self.type_name,
            id=self.id,
            throttle_rate_ms=throttle_ms,
            compression=compression or self.compression,
        )
