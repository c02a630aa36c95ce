"""The robot's clock, seen through a link with changing delay: pure, fed with stamps and arrivals.

The robot's clock may be hours off, so a stamp alone says nothing about age. What can be known is
how much later than the fastest message another one came: `offset` is the largest stamp − arrival
seen, and ages count from there. The one-way delay of that fastest message stays unknown, and is
not added.
"""

from __future__ import annotations

DRIFT = 200e-6
"""Two quartz clocks part by up to this rate (±100 ppm each); the estimate relaxes by as much."""
JUMP_S = 0.5
CONFIRMATIONS = 3
"""A stamp further ahead than JUMP_S moves the estimate only when so many in a row agree: one wrong
stamp must not make every right one look old."""


class ClockOffset:
    """Estimates the robot's clock minus our monotonic clock."""

    def __init__(self) -> None:
        self._offset_s: float | None = None
        self._seen_s = 0.0
        self._ahead = 0

    def observe(self, stamp_s: float, arrival_s: float) -> None:
        """Take in one message: its stamp (robot's clock) and its arrival (ours)."""
        candidate = stamp_s - arrival_s
        current = self.offset_s(arrival_s)
        if current is not None and candidate <= current:
            self._ahead = 0
            return
        if current is not None and candidate > current + JUMP_S:
            self._ahead += 1
            if self._ahead < CONFIRMATIONS:
                return
        self._ahead = 0
        self._offset_s, self._seen_s = candidate, arrival_s

    def offset_s(self, now_s: float) -> float | None:
        """Return robot's clock − ours at `now_s`; None before the first message."""
        if self._offset_s is None:
            return None
        return self._offset_s - DRIFT * max(0.0, now_s - self._seen_s)

    def robot_time(self, now_s: float) -> float | None:
        """Return the robot's clock at our `now_s`; None before the first message."""
        offset = self.offset_s(now_s)
        return None if offset is None else now_s + offset

    def age_s(self, stamp_s: float, now_s: float) -> float:
        """Return how old a message with this stamp is at `now_s`, at least 0."""
        robot_s = self.robot_time(now_s)
        return 0.0 if robot_s is None else max(0.0, robot_s - stamp_s)

    def reset(self) -> None:
        """Forget everything: after a reconnect the robot's clock may have been set."""
        self._offset_s = None
        self._ahead = 0


class Staleness:
    """Tells when everything that arrives has been old for so long that only a reconnect helps.

    A steady stream of old messages has two causes that look alike: a backlog at the server, which
    dies with the connection, or a robot's clock set back, which a fresh estimate cures.
    """

    def __init__(self, limit_s: float = 0.5, patience_s: float = 5.0) -> None:
        self._limit_s = limit_s
        self._patience_s = patience_s
        self._since_s: float | None = None

    def observe(self, age_s: float, now_s: float) -> bool:
        """Take in one arrival's age; True when it is time to reconnect."""
        if age_s <= self._limit_s:
            self._since_s = None
            return False
        if self._since_s is None:
            self._since_s = now_s
        return now_s - self._since_s >= self._patience_s

    def reset(self) -> None:
        """Begin anew, with a new connection."""
        self._since_s = None
