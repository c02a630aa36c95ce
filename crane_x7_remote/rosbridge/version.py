"""Which ROS the server belongs to. Keys of received stamps → 1 or 2. Pure.

A ROS 1 server drops the keys that it does not know, so that every `time_from_start` written as
sec/nanosec becomes 0. Nothing that carries a time may be published before the version is known.
"""

from __future__ import annotations

from crane_x7_remote.rosbridge.messages import RosVersion

MIXED_S = 5.0
"""Stamps of the other version count against this one for so long."""
KEYS: dict[RosVersion, str] = {1: "secs/nsecs (ROS 1)", 2: "sec/nanosec (ROS 2)"}


class VersionWatch:
    """The version of one connection's server."""

    def __init__(self) -> None:
        self.version: RosVersion | None = None
        """None while it is unknown or stamps of both versions come."""
        self._seen: dict[RosVersion, tuple[float, str]] = {}

    def observe(self, version: RosVersion, topic: str, now_s: float) -> None:
        """Take in the version of one stamp on `topic`."""
        self._seen[version] = (now_s, topic)
        other = self._seen.get(1 if version == 2 else 2)
        self.version = version if other is None or now_s - other[0] >= MIXED_S else None

    def reset(self) -> None:
        """Forget: behind a new connection there may be another server."""
        self.version = None
        self._seen = {}

    @property
    def doubt(self) -> str | None:
        """Why there is no version, in words; None where there is one."""
        seen = dict(self._seen)
        if self.version is not None:
            return None
        if not seen:
            return "no stamp has come yet that tells ROS 1 (secs) from ROS 2 (sec)"
        stamps = " and ".join(f"{KEYS[key]} on {topic}" for key, (_, topic) in sorted(seen.items()))
        return (
            f"stamps come with {stamps}; expected one version: does a gateway before rosbridge"
            " rewrite messages, or do two servers answer?"
        )
