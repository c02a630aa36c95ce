"""What keeps the loop below its rate, policy or camera. Outcomes of ticks → metrics, a log line.

Uses whether the loop was behind its deadlines and whether it waited for a frame. No clock.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_remote.inference.metrics import LoopMetrics, RateLimit
from crane_x7_remote.inference.tick_log import Sent

logger = logging.getLogger(__name__)

WINDOW_S = 3.0
FEWEST = 10
"""The rate is computed over the trajectories of the last `WINDOW_S`, but at least N."""
SLOW, FAST = 1.02, 1.01
"""Ratio of mean interval to period above which the loop counts as limited, and below which it no
longer does: a loss below 2 % is not logged."""
PAUSE_S = 60.0
"""Shortest time between two log lines that name the same cause; a policy that is occasionally slow
would fill the log."""
OUTLIERS = 2
"""One slow prediction (garbage collection, a page fault) does not make a slow policy: N intervals
are ignored, if they are longer than twice the period and twice the median."""


@dataclass(frozen=True)
class TickTiming:
    """Times of one tick that sent a trajectory."""

    taken_s: float
    """When it had its frame."""
    interval_s: float | None
    """Time since the previous one; None after a hold for another cause."""
    busy_s: float
    """Time from the frame to the trajectory."""
    policy_s: float
    cause: RateLimit | None
    """What it waited for: the policy's previous prediction, or a frame; None: its deadline."""


class RateWatch:
    """Watches the rate of one loop; writes `rate_limit` and `rate_lost_hz` into its metrics."""

    def __init__(self, metrics: LoopMetrics) -> None:
        self._metrics = metrics
        self._timings: deque[TickTiming] = deque()
        self._before_s: float | None = None
        self._taken_s = 0.0
        self._is_behind = False
        self._starved = False
        self._said: RateLimit | None = None
        """What the last line of the log named."""
        self._silent_until_s: dict[RateLimit, float] = {}

    @property
    def limit(self) -> RateLimit | None:
        """What limits the rate now."""
        return self._metrics.rate_limit

    def took_frame(self, now_s: float, is_behind: bool, was_there: bool) -> None:
        """Note that a tick took its frame at `now_s`; `was_there`: without waiting for it."""
        self._taken_s, self._is_behind = now_s, is_behind
        self._starved |= not was_there

    def note(self, outcome: Sent | Hold) -> None:
        """Process one tick's outcome."""
        if isinstance(outcome, Sent):
            self._add(outcome)
            self._judge()
        elif outcome.reason is HoldReason.NO_NEW_FRAME:
            self._starved = True
        else:
            self._before_s, self._starved = None, False

    def _add(self, sent: Sent) -> None:
        taken_s = self._taken_s
        interval_s = None if self._before_s is None else taken_s - self._before_s
        late: RateLimit | None = "policy" if self._is_behind else None
        cause: RateLimit | None = "camera" if self._starved else late
        busy_s = sent.at_s - taken_s
        self._timings.append(TickTiming(taken_s, interval_s, busy_s, sent.policy_s, cause))
        self._before_s, self._starved = taken_s, False
        while len(self._timings) > FEWEST and self._timings[0].taken_s < taken_s - WINDOW_S:
            self._timings.popleft()

    def _judge(self) -> None:
        timings, asked_hz = self._timings, self._metrics.asked_rate_hz
        intervals_s = [seen.interval_s for seen in timings if seen.interval_s is not None]
        span_s = timings[-1].taken_s - timings[0].taken_s
        if len(intervals_s) < FEWEST - 1 or span_s < 0.9 * WINDOW_S:
            return
        share = fmean(_without_outliers(intervals_s, 1 / asked_hz)) * asked_hz
        limit = self._cause() if share > (SLOW if self.limit is None else FAST) else None
        rate_hz = 1 / fmean(intervals_s)
        self._metrics.rate_lost_hz = max(asked_hz - rate_hz, 0.0) if limit else 0.0
        self._say(limit, rate_hz)
        if limit != self.limit:
            self._metrics.rate_limit = limit
            timings.clear()  # the next change needs new evidence

    def _say(self, limit: RateLimit | None, rate_hz: float) -> None:
        """Log a change, each cause at most once in `PAUSE_S`; a cause that lasts is logged then."""
        if limit == self._said:
            return
        if limit is not None:
            if self._taken_s < self._silent_until_s.get(limit, 0.0):
                return
            self._silent_until_s[limit] = self._taken_s + PAUSE_S
        self._said = limit
        asked = f"the requested {self._metrics.asked_rate_hz:g} Hz"
        if limit is None:
            logger.info("driving at %s again", asked)
            return
        cause = f"camera and link deliver {rate_hz:.1f} frames per second"
        if limit == "policy":
            cause = _say_policy(self._timings)
        driving = f"driving at {rate_hz:.1f} Hz instead of {asked} (VLA_INFERENCE_RATE)"
        logger.warning("%s: %s", cause, driving)

    def _cause(self) -> RateLimit | None:
        """Return what costs more time; the last one named stays unless the other costs twice it."""
        policy_s, camera_s = self._lost_s("policy"), self._lost_s("camera")
        if policy_s == camera_s == 0:
            return None
        if self.limit is not None and max(policy_s, camera_s) < 2 * min(policy_s, camera_s):
            return self.limit
        return "policy" if policy_s >= camera_s else "camera"

    def _lost_s(self, cause: RateLimit) -> float:
        intervals_s = [seen.interval_s for seen in self._timings if seen.cause == cause]
        known_s = [interval_s for interval_s in intervals_s if interval_s is not None]
        return max(sum(known_s) - len(known_s) / self._metrics.asked_rate_hz, 0.0)


def _without_outliers(intervals_s: Sequence[float], period_s: float) -> Sequence[float]:
    ordered = sorted(intervals_s)
    long_s = 2 * max(period_s, median(ordered))
    return ordered[:-OUTLIERS] + [one for one in ordered[-OUTLIERS:] if one <= long_s]


def _say_policy(timings: Collection[TickTiming]) -> str:
    ordered_ms = sorted(seen.policy_s * 1e3 for seen in timings)
    least_ms, most_ms = ordered_ms[OUTLIERS], ordered_ms[-1 - OUTLIERS]
    steady = most_ms - least_ms <= 0.2 * most_ms
    took = f"{fmean(ordered_ms):.0f}" if steady else f"{least_ms:.0f} to {most_ms:.0f}"
    busy_ms = 1e3 * fmean(seen.busy_s for seen in timings)
    rest_ms = busy_ms - fmean(ordered_ms)
    rest = f", the rest of a tick {rest_ms:.0f} ms" if rest_ms > 0.05 * busy_ms else ""
    return f"policy takes {took} ms{rest}"
