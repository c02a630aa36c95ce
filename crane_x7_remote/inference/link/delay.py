"""How long a trajectory takes to the robot. Round trips of trajectories and pings → the lead. Pure.

A trajectory leaves the running one a lead time after it was made. One that reaches the robot later
makes the controller step onto it, so the lead must cover the link's worst delay, and each
millisecond of it is a millisecond of reaction. The estimate takes the slowest round trip of the
last minutes: it rises at once and sinks slowly afterwards.

The whole round trip counts as the way there, because the robot's time is only known from messages
that took the way back (see `shaping.Moment`).
"""

from __future__ import annotations

import statistics
from collections import deque

WINDOW_S = 180.0
"""The slowest round trip is remembered for this long."""
BUCKET_S = 5.0
SINK = 0.02
"""Share of the lead that is given back per second once the slowest round trip is forgotten."""
HEADROOM = 1.25
"""Trajectories meet a stall at any phase: the slowest seen is not the slowest to come."""
MARGIN_S = 0.02
"""Added to the lead: delays of a busy machine."""
RECENT = 32
"""Round trips whose median is the typical one."""
UNKNOWN_S = 0.03
"""Round trip that is assumed before the first measurement."""
FIRST_S = 0.06
"""Slowest round trip that is assumed at the start; sinks like any other."""
LARGEST_SHARE = 0.5
"""Of the validity: a longer lead would leave too little of the trajectory. Stalls beyond it are for
the guard beside the robot."""


class LinkDelay:
    """The delays of one link."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._buckets: deque[list[float]] = deque()
        """[start, slowest round trip since], both in s; oldest first."""
        self._slowest_s = FIRST_S
        self._sunk_at_s: float | None = None

    def observe(self, round_trip_s: float, now_s: float) -> None:
        """Take one round trip, of a trajectory that came back on its own topic or of a ping."""
        self._recent.append(round_trip_s)
        self.observe_missing(round_trip_s, now_s)

    def observe_missing(self, waited_s: float, now_s: float) -> None:
        """Note that an answer has been missing for `waited_s`: its round trip is at least that."""
        if not self._buckets or now_s - self._buckets[-1][0] >= BUCKET_S:
            self._buckets.append([now_s, waited_s])
        self._buckets[-1][1] = max(self._buckets[-1][1], waited_s)
        while now_s - self._buckets[0][0] > WINDOW_S + BUCKET_S:
            self._buckets.popleft()
        slowest_s = max(slowest for _, slowest in self._buckets)
        elapsed_s = 0.0 if self._sunk_at_s is None else max(now_s - self._sunk_at_s, 0.0)
        self._sunk_at_s = now_s
        self._slowest_s = max(slowest_s, self._slowest_s * (1 - SINK) ** elapsed_s)

    @property
    def typical_s(self) -> float:
        """The median of the latest round trips."""
        return statistics.median(self._recent) if self._recent else UNKNOWN_S

    def lead_s(self, validity_s: float, is_guarded: bool = False) -> float:
        """Return how long after now a trajectory leaves the running one, for this validity.

        `is_guarded`: what comes late is re-timed beside the robot, so a usual round trip is enough.
        """
        slowest_s = self.typical_s if is_guarded else self._slowest_s
        needed_s = HEADROOM * slowest_s + MARGIN_S
        return max(self.typical_s + MARGIN_S, min(needed_s, LARGEST_SHARE * validity_s))
