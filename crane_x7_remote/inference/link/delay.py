"""Delay of a trajectory to the robot. Round trips of trajectories and pings → the lead. Pure.

A trajectory leaves the running one a lead time after it was made. If it reaches the robot later,
the controller steps onto it. So the lead must cover the link's worst delay, and each millisecond of
lead adds a millisecond to the reaction time. The estimate is the slowest round trip of the last
minutes: it rises at once and falls slowly.

The whole round trip counts as delay to the robot, because the robot's time is only known from
messages that travelled back (see `shaping.Moment`).
"""

from __future__ import annotations

import statistics
from collections import deque

WINDOW_S = 180.0
"""The slowest round trip is remembered for this long."""
BUCKET_S = 5.0
SINK = 0.02
"""Share by which the lead falls per second after the slowest round trip is forgotten."""
HEADROOM = 1.25
"""Trajectories meet a stall at any phase: a later round trip can be slower than any seen."""
MARGIN_S = 0.02
"""Added to the lead for the delays of a busy machine."""
RECENT = 32
"""Round trips whose median is the typical one."""
UNKNOWN_S = 0.03
"""Assumed round trip before the first measurement."""
FIRST_S = 0.06
"""Assumed slowest round trip at the start; falls as any other."""
LARGEST_SHARE = 0.5
"""Share of the validity: a longer lead would leave too little of the trajectory. The guard next to
the robot handles longer stalls."""


class LinkDelay:
    """The delays of one link."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._buckets: deque[list[float]] = deque()
        """[start, slowest round trip since], both in s; oldest first."""
        self._slowest_s = FIRST_S
        self._sunk_at_s: float | None = None

    def observe(self, round_trip_s: float, now_s: float) -> None:
        """Add one round trip, of a trajectory heard on its own topic or of a ping."""
        self._recent.append(round_trip_s)
        self.observe_missing(round_trip_s, now_s)

    def observe_missing(self, waited_s: float, now_s: float) -> None:
        """Note that an answer has been pending for `waited_s`: its round trip is at least that."""
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
        """Return how long from now a trajectory leaves the running one, for this validity.

        `is_guarded`: the guard re-times late trajectories, so a usual round trip is enough.
        """
        slowest_s = self.typical_s if is_guarded else self._slowest_s
        needed_s = HEADROOM * slowest_s + MARGIN_S
        return max(self.typical_s + MARGIN_S, min(needed_s, LARGEST_SHARE * validity_s))
