"""When the next tick is due: absolute deadlines that keep their rate and sit just before a frame.

Pure arithmetic on monotonic seconds. Deadlines are start + k·period: a late tick does not move the
ones after it. A free-running loop would find each frame up to one camera period old; so right after
the link came up the phase is set to just before a frame's arrival, and from then on it is slewed so
gently that the rate stays within `MAX_SLEW`.
"""

from __future__ import annotations

EARLY_S = 0.002
"""Deadlines aim this long before a frame's arrival: waking up and looking takes no time then."""
MAX_SLEW = 0.0005
"""Largest change of a period, as a share of it: half of the 0.1 % that the rate may be off."""
SETTLING_TICKS = 50
SETTLING_SLEW = 0.02
"""Right after the link came up the first frame, which set the phase, may have been a late one."""
GAIN = 0.1
"""Share of the phase error that one tick takes away."""
ATTEMPTS = 3
"""How often the phase is set anew after the link came up; a camera whose rate does not fit the
loop's is then left alone."""


class Pacer:
    """Deadlines for one loop."""

    def __init__(self, period_s: float, start_s: float) -> None:
        self.period_s = period_s
        self.deadline_s = start_s
        self._attempts = ATTEMPTS
        self._settling = SETTLING_TICKS

    @property
    def grace_s(self) -> float:
        """How long after its deadline a tick may wait for the frame that is on its way."""
        return min(0.5 * self.period_s, 0.015)

    def advance(self, now_s: float) -> int:
        """Go to the first deadline after `now_s`; return how many were skipped."""
        due = int((now_s - self.deadline_s) // self.period_s)
        steps = max(due, 0) + 1
        self.deadline_s += steps * self.period_s
        return steps - 1

    def link_came_up(self) -> None:
        """Allow the phase to be set anew: the camera behind a new link has another one."""
        self._attempts = ATTEMPTS
        self._settling = SETTLING_TICKS

    def observe(self, arrival_s: float) -> bool:
        """Steer by when this tick's frame arrived; return whether the phase was set anew.

        Call it before `advance`.
        """
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
