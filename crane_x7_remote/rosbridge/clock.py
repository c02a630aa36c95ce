"""A robot's clock, seen through a link with changing delay. Stamps, arrivals → offset, ages, steps.

Pure. `ClockOffset` reads the header stamp and the arrival of each message of one topic. The clock
may be hours off, so a stamp alone says nothing about age. Only the delay relative to the fastest
message can be measured: ages count from there. The one-way delay of the fastest message remains
unknown, and is not added.

The estimate moves as follows, with offset = stamp − arrival of one message:

- *Up, a little*: two of the last messages were faster than the estimate. One alone never moves it.
- *Up, by a step*: no delay makes a message faster than the fastest. Several in a row that agree
  mean that the clock was set forward (or that the estimate was made while the link stalled).
- *Down, by a step*: a longer delay looks the same (a stall, a backlog or a longer route), and to
  mistake one for a clock set back would make every frame look younger than it is. The difference:
  messages arrive in order, so no delay makes a *stamp* smaller than the previous one. The estimate
  goes down only after a stamp that went back, when the messages after it have kept their new offset
  for a while. The round trip is less reliable: a queue inside the robot delays frames, not pings.
- *Down, slowly*: by `DRIFT`, as two quartz clocks drift apart.

So after a lasting rise of the delay, frames look as old as they are. A clock set back during a
pause of its topic looks like such a rise until the link is reopened (see `Staleness`), or until
another topic shows the same step (see `expect`). Both errors make frames look older.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

DRIFT = 200e-6
"""Two quartz clocks drift apart by up to this rate (±100 ppm each); the estimate falls by it."""
AHEAD_S = 0.05
"""A stamp this much ahead of the estimate is doubted; smaller raises are accepted directly."""
BEHIND_S = 0.05
"""A clock set back by less is ignored; frames then look older by as much."""
STAMP_BACK_S = 0.01
"""A stamp that went back by less is jitter."""
CONFIRMATIONS = 3
"""A step is accepted when this many messages in a row agree: one wrong stamp moves nothing."""
AHEAD_CONFIRM_S, BACK_CONFIRM_S = 0.1, 0.3
"""The time over which they must agree."""
LONG_CONFIRMATIONS, LONG_CONFIRM_S = 8, 0.6
"""The same if the previous stamps scatter by as much, due to jitter or a stall."""
JITTER_S = 0.2
"""If stamps scatter, one ahead by up to this is not doubted."""
AGREE_S = 0.5
"""Stamps whose leads differ by more than this do not agree."""
SETTLING, SETTLING_S = 5, 0.3
"""The first SETTLING messages, over at least SETTLING_S, only form the estimate."""
RECENT = 20
RAISE_S = 1.0
"""Raises within this time are added up."""
EXPECT_S = 3.0
"""A step seen on another topic is expected on this one for this long."""


@dataclass(frozen=True)
class ClockStep:
    """A step of the clock: when it was accepted, on our monotonic clock, and by how much."""

    at_s: float
    by_s: float


@dataclass(frozen=True)
class _Arrival:
    """One message: its stamp (robot's clock) and its arrival (ours)."""

    stamp_s: float
    arrival_s: float

    @property
    def offset_s(self) -> float:
        return self.stamp_s - self.arrival_s


class ClockOffset:
    """Estimates one topic's clock minus our monotonic clock. Fed by one thread; any may read."""

    def __init__(self) -> None:
        self.steps = 0
        """Number of steps accepted so far."""
        self.step: ClockStep | None = None
        """The last step."""
        self.reset()

    def reset(self) -> None:
        """Forget everything: a new link may lead to another clock."""
        self._estimate: tuple[float, float] | None = None
        self._expected: ClockStep | None = None
        self._settling: list[float] = []
        self._since_s = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._raises: list[ClockStep] = []
        self._newest_s = float("-inf")
        self._ahead: list[_Arrival] = []
        self._behind: deque[_Arrival] = deque(maxlen=400)
        self.is_settled = False
        """Whether enough messages were received to trust the estimate."""
        self.doubt: tuple[float, int] | None = None
        """Disagreement of the last messages with the estimate, s, and their number, or None."""

    def observe(self, stamp_s: float, arrival_s: float) -> bool:
        """Process one message; False if its stamp must not be used (yet)."""
        seen = _Arrival(stamp_s, arrival_s)
        self.doubt = None
        offset_s = self.offset_s(arrival_s)
        if offset_s is None or not self.is_settled:
            return self._settle(seen)
        if self._is_expected(seen, offset_s):
            self._take_step([seen], known=self._expected)
            return True
        if seen.offset_s > offset_s + max(AHEAD_S, min(self._scatter_s(offset_s) / 4, JITTER_S)):
            return self._doubt_ahead(seen, offset_s)
        self._ahead.clear()
        if self._is_set_back(seen, offset_s):
            return self._doubt_behind(seen, offset_s)
        self._recent.extend(each.offset_s for each in self._behind)
        self._behind.clear()
        self._agree(seen, offset_s)
        return True

    def expect(self, by_s: float, now_s: float) -> None:
        """Note a step seen on another topic of the same robot: one message here confirms it."""
        if self.step is None or now_s - self.step.at_s > EXPECT_S:
            self._expected = ClockStep(now_s, by_s)

    def offset_s(self, now_s: float) -> float | None:
        """Return the robot's clock − ours at `now_s`; None before the first message."""
        estimate = self._estimate
        if estimate is None:
            return None
        offset_s, seen_s = estimate
        return offset_s - DRIFT * max(0.0, now_s - seen_s)

    def robot_time(self, now_s: float) -> float | None:
        """Return the robot's clock at our `now_s`; None before the first message."""
        offset_s = self.offset_s(now_s)
        return None if offset_s is None else now_s + offset_s

    def age_s(self, stamp_s: float, now_s: float) -> float:
        """Return how old a message with this stamp is at `now_s`, at least 0."""
        robot_s = self.robot_time(now_s)
        return 0.0 if robot_s is None else max(0.0, robot_s - stamp_s)

    # --- the estimate ----------------------------------------------------------------------------

    def _settle(self, seen: _Arrival) -> bool:
        """Form the first estimate: the second fastest of at least three, as one may be wrong."""
        if not self._settling:
            self._since_s = seen.arrival_s
        offsets = self._settling
        offsets.append(seen.offset_s)
        offset_s = sorted(offsets)[-2] if len(offsets) >= CONFIRMATIONS else max(offsets)
        self._estimate = (offset_s, seen.arrival_s)
        is_right = seen.offset_s <= offset_s + AHEAD_S
        if is_right:
            self._newest_s = max(self._newest_s, seen.stamp_s)
        if self._newest_s > seen.arrival_s + offset_s + AHEAD_S:  # it came from the wrong stamp
            self._newest_s = seen.stamp_s
        if len(offsets) >= SETTLING and seen.arrival_s - self._since_s >= SETTLING_S:
            self._recent.extend(each for each in offsets if each <= offset_s + AHEAD_S)
            self.doubt = None if is_right else (seen.offset_s - offset_s, 1)
            self.is_settled = True
        return is_right

    def _agree(self, seen: _Arrival, offset_s: float) -> None:
        self._recent.append(seen.offset_s)
        self._newest_s = max(self._newest_s, seen.stamp_s)
        if seen.offset_s > offset_s and len(self._recent) > 1:
            second_s = sorted(self._recent)[-2]
            if second_s > offset_s:
                self._raise(second_s - offset_s, seen.arrival_s)
                self._estimate = (second_s, seen.arrival_s)

    def _raise(self, by_s: float, now_s: float) -> None:
        """Note a raise; many in a short time are a step smoothed by a draining backlog."""
        self._raises = [each for each in self._raises if now_s - each.at_s < RAISE_S]
        self._raises.append(ClockStep(now_s, by_s))
        total_s = sum(each.by_s for each in self._raises)
        if total_s > 2 * AHEAD_S:
            self._raises = []
            self.step = ClockStep(now_s, total_s)
            self.steps += 1

    def _take_step(self, seen: list[_Arrival], known: ClockStep | None = None) -> None:
        """Adopt the offset on which these messages agree; `known`: a step reported already."""
        last = seen[-1]
        offsets = sorted(each.offset_s for each in seen)
        offset_s = offsets[-2] if len(offsets) > 1 else offsets[-1]
        before_s = self.offset_s(last.arrival_s)
        self._estimate = (offset_s, last.arrival_s)
        self._recent.clear()
        self._recent.extend(offsets)
        self._newest_s = last.stamp_s
        self._ahead, self._expected, self.doubt = [], None, None
        self._behind.clear()
        if known is not None:
            return
        self.step = ClockStep(last.arrival_s, offset_s - (before_s or 0.0))
        self.steps += 1

    def _scatter_s(self, offset_s: float) -> float:
        """Return a generous bound of how far messages usually are below the estimate."""
        return 3 * (offset_s - median(self._recent)) if self._recent else 0.0

    def _is_expected(self, seen: _Arrival, offset_s: float) -> bool:
        expected = self._expected
        if expected is None or seen.arrival_s - expected.at_s > EXPECT_S:
            return False
        return abs(seen.offset_s - offset_s - expected.by_s) <= min(AHEAD_S, abs(expected.by_s) / 2)

    # --- set forward -----------------------------------------------------------------------------

    def _doubt_ahead(self, seen: _Arrival, offset_s: float) -> bool:
        self._ahead = [
            each for each in self._ahead if abs(each.offset_s - seen.offset_s) <= AGREE_S
        ]
        self._ahead.append(seen)
        if _covers(self._ahead, CONFIRMATIONS, AHEAD_CONFIRM_S):
            self._take_step(self._ahead)
            return True
        self.doubt = (seen.offset_s - offset_s, len(self._ahead))
        return False

    # --- set back --------------------------------------------------------------------------------

    def _is_set_back(self, seen: _Arrival, offset_s: float) -> bool:
        """Whether this message follows a stamp that went back, and is not on the old clock."""
        behind_s = offset_s - seen.offset_s
        if behind_s <= BEHIND_S:
            return False
        if not self._behind:
            return seen.stamp_s < self._newest_s - STAMP_BACK_S
        least_s = offset_s - max(each.offset_s for each in self._behind)
        return behind_s >= least_s / 2

    def _doubt_behind(self, seen: _Arrival, offset_s: float) -> bool:
        if self._behind and seen.stamp_s < self._behind[-1].stamp_s - STAMP_BACK_S:
            self._behind.clear()  # went back again
        self._behind.append(seen)
        offsets = sorted(each.offset_s for each in self._behind)
        by_s = offset_s - offsets[-2 if len(offsets) > 1 else -1]
        scatter_s = self._scatter_s(offset_s)
        if self._has_stayed(by_s, scatter_s):
            self._take_step(list(self._behind))
            return True
        if by_s <= scatter_s:
            return True
        self.doubt = (-by_s, len(self._behind))
        return False

    def _has_stayed(self, by_s: float, scatter_s: float) -> bool:
        """Whether the messages since the stamp went back keep one offset, as delays do not."""
        if by_s <= BEHIND_S:
            return False
        seen = list(self._behind)
        if by_s > scatter_s and _covers(seen, CONFIRMATIONS, BACK_CONFIRM_S):
            most_s = max(BEHIND_S, scatter_s / 2, by_s / 3)
            if _spread_s(seen, BACK_CONFIRM_S) <= most_s:
                return True
        return _covers(seen, LONG_CONFIRMATIONS, LONG_CONFIRM_S) and (
            _spread_s(seen, LONG_CONFIRM_S) <= max(BEHIND_S, by_s / 3)
        )


def _covers(seen: list[_Arrival], count: int, duration_s: float) -> bool:
    """Whether these are enough messages over enough time, and their stamps advance with it."""
    first, last = seen[0], seen[-1]
    return (
        len(seen) >= count
        and last.arrival_s - first.arrival_s >= duration_s
        and last.stamp_s - first.stamp_s >= duration_s / 2
    )


def _spread_s(seen: list[_Arrival], duration_s: float) -> float:
    """Return the spread of the offsets of the last `duration_s`."""
    until_s = seen[-1].arrival_s - duration_s
    offsets = [each.offset_s for each in seen if each.arrival_s >= until_s]
    return max(offsets) - min(offsets)


STEADY_S, STEADY_COUNT = 0.7, 8
"""All messages of this time, and at least this many, must be late by the same amount."""
STEADY_LAG_S, STEADY_SPREAD_S = 0.25, 0.08
STEADY_AGAIN_S = 10.0
"""A reconnect for a steady lag is tried at most this often."""


class Staleness:
    """Detects that all messages have been old for so long that only a reconnect helps.

    A steady stream of old messages is either a backlog at the server, which a reconnect clears, or
    a clock that was set back while nothing arrived, which a new estimate corrects. A stream that
    is late by a constant amount does not drain: waiting does not help.
    """

    def __init__(self, limit_s: float = 0.5, patience_s: float = 5.0) -> None:
        self._limit_s = limit_s
        self._patience_s = patience_s
        self._since_s: float | None = None
        self._lags: deque[tuple[float, float]] = deque()
        """(arrival, age) over the last STEADY_S."""
        self._reconnected_s = float("-inf")

    def observe(self, age_s: float, now_s: float) -> bool:
        """Process one message's age; True when it is time to reconnect."""
        return self._is_steady(age_s, now_s) or self._is_old(age_s, now_s)

    def _is_steady(self, age_s: float, now_s: float) -> bool:
        """Whether recent messages were late by one amount, without a recent reconnect for that."""
        self._lags.append((now_s, age_s))
        while now_s - self._lags[0][0] > STEADY_S:
            self._lags.popleft()
        ages_s = [age for _, age in self._lags]
        covers = now_s - self._lags[0][0] >= 0.8 * STEADY_S and len(ages_s) >= STEADY_COUNT
        late = min(ages_s) > STEADY_LAG_S and max(ages_s) - min(ages_s) < STEADY_SPREAD_S
        if not (covers and late and now_s - self._reconnected_s >= STEADY_AGAIN_S):
            return False
        self._reconnected_s = now_s
        return True

    def _is_old(self, age_s: float, now_s: float) -> bool:
        if age_s <= self._limit_s:
            self._since_s = None
            return False
        if self._since_s is None:
            self._since_s = now_s
        return now_s - self._since_s >= self._patience_s

    def reset(self) -> None:
        """Restart, with a new connection."""
        self._since_s = None
        self._lags.clear()
