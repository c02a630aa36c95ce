"""When the next tick is due: absolute deadlines at a fixed rate, each just before a frame.

Pure arithmetic on monotonic seconds. Deadlines are start + k·period: a late tick does not move the
later ones. A free-running loop would find each frame up to one camera period old; so when the link
comes up the phase is set to just before a frame's arrival, and from then on it is slewed so slowly
that the rate stays within `MAX_SLEW`.

After a tick that took longer than the period, the next one runs at once, for the deadline that has
passed; only what is overdue by a whole period is skipped. So a slow policy drives at its own rate,
and a fast one returns to the deadlines when it has caught up.
"""

from __future__ import annotations

EARLY_S = 0.002
"""Deadlines are this long before a frame's arrival, to cover the time for waking up."""
MAX_SLEW = 0.0005
"""Largest change of a period, as a share of it: half of the 0.1 % by which the rate may differ."""
SETTLING_TICKS = 50
SETTLING_SLEW = 0.02
"""The first frame after the link came up sets the phase; it may have been late."""
GAIN = 0.1
"""Share of the phase error that one tick corrects."""
ATTEMPTS = 3
"""How often the phase is set again after the link came up; after that, the phase of a camera whose
rate does not match the loop's is ignored."""
LONGEST_WAIT_S = 0.1
"""A tick that is behind waits no longer than this for a frame: the loop must be able to stop."""


class Pacer:
    """Deadlines for one loop."""

    def __init__(self, period_s: float, start_s: float) -> None:
        self.period_s = period_s
        self.restart(start_s)

    def restart(self, start_s: float) -> None:
        """Begin again, with the first deadline at `start_s`."""
        self.deadline_s = start_s
        self.is_behind = False
        """The deadline had passed when the loop became free: its tick runs at once."""
        self.overdue_periods = 1
        """Deadlines overdue by N periods are skipped. One, so that a stall is not followed by a
        burst; two for a policy that is too slow on average, so that the loop does not wait for a
        deadline after a quick prediction between slow ones."""
        self._free_s = start_s
        self._ticks_behind = 0
        self._attempts = ATTEMPTS
        self._settling = SETTLING_TICKS

    @property
    def aim_s(self) -> float:
        """When the tick should begin: at its deadline, or when the loop became free after it."""
        return self._free_s if self.is_behind else self.deadline_s

    @property
    def grace_s(self) -> float:
        """How long after its deadline a tick may wait for the frame that is due."""
        return min(0.5 * self.period_s, 0.015)

    def patience_s(self, now_s: float, has_frame: bool) -> float:
        """Return how long a tick may wait for a newer frame; `has_frame`: there is an unused one.

        When behind, an available frame is better than a newer one, unless that is due now; without
        a frame the tick waits for one.
        """
        if not self.is_behind:
            return self.deadline_s + self.grace_s - now_s
        if has_frame:
            return self.deadline_s + min(2 * EARLY_S, self.grace_s) - now_s
        overdue_s = self.deadline_s + self.overdue_periods * self.period_s
        return min(overdue_s - now_s, LONGEST_WAIT_S)

    @property
    def next_deadline_s(self) -> float:
        """When the tick after this one is due."""
        return self.deadline_s + self.period_s

    def advance(self, now_s: float) -> int:
        """Advance to the next deadline, or to a passed one that is not yet overdue; return how many
        were skipped."""
        passed = int((now_s - self.deadline_s) // self.period_s)
        steps = max(passed - self.overdue_periods + 1, 1)
        self.deadline_s += steps * self.period_s
        self._free_s = now_s
        self.is_behind = self.deadline_s <= now_s
        if self.is_behind:
            self._ticks_behind += 1
        else:
            if self._ticks_behind >= SETTLING_TICKS:
                self.settle()
            self._ticks_behind = 0
        return steps - 1

    def settle(self) -> None:
        """Allow the phase to be set again: after a reconnect the camera's phase differs, and while
        the loop was behind the phase was not corrected."""
        self._attempts = ATTEMPTS
        self._settling = SETTLING_TICKS

    def observe(self, arrival_s: float) -> bool:
        """Correct the phase by the arrival of this tick's frame; return whether it was set again.

        Call it before `advance`. When behind, the newest frame says nothing about the phase.
        """
        if self.is_behind:
            return False
        early_s = arrival_s - self.deadline_s
        if abs(early_s) <= self.grace_s:
            self._attempts = 0
        elif self._attempts > 0:
            self._attempts -= 1
            self.deadline_s = arrival_s - EARLY_S
            return True
        limit_s = (SETTLING_SLEW if self._settling > 0 else MAX_SLEW) * self.period_s
        self._settling -= 1
        self.deadline_s += min(max(GAIN * (early_s - EARLY_S), -limit_s), limit_s)
        return False
