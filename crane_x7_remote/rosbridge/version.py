"""The server's ROS version. Keys of received stamps → 1 or 2. Pure.

A ROS 1 server drops unknown keys, so that every `time_from_start` written as sec/nanosec becomes 0.
So nothing that contains a time may be published before the version is known.
"""

from __future__ import annotations

from crane_x7_remote.rosbridge.messages import RosVersion

MIXED_S = 5.0
"""Stamps of the other version count against this one for this long."""
KEYS: dict[RosVersion, str] = {1: "secs/nsecs (ROS 1)", 2: "sec/nanosec (ROS 2)"}


class VersionWatch:
    """The version of one connection's server."""

    def __init__(self) -> None:
        self.version: RosVersion | None = None
        """None while unknown, or while stamps of both versions arrive."""
        self._seen: dict[RosVersion, tuple[float, str]] = {}

    def observe(self, version: RosVersion, topic: str, now_s: float) -> None:
        """Process the version of one stamp on `topic`."""
        self._seen[version] = (now_s, topic)
        other = self._seen.get(1 if version == 2 else 2)
        self.version = version if other is None or now_s - other[0] >= MIXED_S else None

    def reset(self) -> None:
        """Forget the version: a new connection may lead to another server."""
        self.version = None
        self._seen = {}

    @property
    def doubt(self) -> str | None:
        """Why the version is unknown, as text; None if it is known."""
        seen = dict(self._seen)
        if self.version is not None:
            return None
        if not seen:
            return "no stamp received yet that tells ROS 1 (secs) from ROS 2 (sec)"
        stamps = " and ".join(f"{KEYS[key]} on {topic}" for key, (_, topic) in sorted(seen.items()))
        return (
            f"stamps have {stamps}; expected one version: does a gateway in front of rosbridge"
            " rewrite messages, or do two servers answer?"
        )
