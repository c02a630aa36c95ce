"""The `throttle_rate` to request. Age of each frame on arrival → milliseconds. Pure.

A rosbridge server queues frames for a slow link without limit; only `throttle_rate` makes it drop
frames. So if frames arrive late, the client requests fewer. The server quantises by the camera's
period: from 30 Hz, 50 ms gives 15 Hz, 85 ms gives 10 Hz, and so on.
"""

from __future__ import annotations

from typing import Final

LEVELS_MS: Final = (0, 50, 85, 150, 300)
"""30, 15, 10, 6 and 3 Hz from a 30 Hz camera."""
LATE_S = 0.12
"""A frame this much later than the fastest one has waited in a queue."""
PROMPT_S = 0.05
WINDOW = 8
"""Frames that are judged together; most of them must be late before a level is added."""
SETTLE_S = 1.5
"""After a change the old backlog still drains; its frames are ignored."""
FIRST_TRIAL_S, LONGEST_TRIAL_S = 10.0, 160.0
"""How long frames must have been on time before more are requested; doubled after each failure."""


class Throttle:
    """Adapts the rate to the link, with hysteresis."""

    def __init__(self) -> None:
        self._level = 0
        self._late: list[bool] = []
        self._changed_s = float("-inf")
        self._prompt_since_s: float | None = None
        self._trial_s = FIRST_TRIAL_S
        self._was_raised_back = False

    @property
    def rate_ms(self) -> int:
        """The value to request from the server now."""
        return LEVELS_MS[self._level]

    def observe(self, age_s: float, now_s: float) -> bool:
        """Process one frame's age on arrival; True if `rate_ms` has changed."""
        if now_s - self._changed_s < SETTLE_S:
            return False
        self._late = [*self._late[-WINDOW + 1 :], age_s > LATE_S]
        if age_s > PROMPT_S:
            self._prompt_since_s = None
        elif self._prompt_since_s is None:
            self._prompt_since_s = now_s
        if len(self._late) == WINDOW and sum(self._late) > WINDOW // 2:
            return self._ask_for_fewer(now_s)
        waited = self._prompt_since_s is not None and now_s - self._prompt_since_s >= self._trial_s
        return self._ask_for_more(now_s) if waited else False

    def reset_link(self) -> None:
        """Forget the last connection's frames; the level stays, as the link is likely the same."""
        self._late.clear()
        self._prompt_since_s = None

    def _ask_for_fewer(self, now_s: float) -> bool:
        self._late.clear()
        if self._level == len(LEVELS_MS) - 1:
            return False
        if self._was_raised_back:  # the last trial of more frames failed: wait longer
            self._trial_s = min(2 * self._trial_s, LONGEST_TRIAL_S)
        self._was_raised_back = False
        self._level += 1
        self._changed_s = now_s
        return True

    def _ask_for_more(self, now_s: float) -> bool:
        self._prompt_since_s = None
        if self._level == 0:
            return False
        self._was_raised_back = True
        self._level -= 1
        self._changed_s = now_s
        return True
