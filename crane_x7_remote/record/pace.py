"""Gaps and clock steps in one stream of messages. Stamps and arrivals → times, or `Lost`. Pure."""

from __future__ import annotations

from typing import Final

STEP_BACK_S: Final = 0.05
"""Stamps that go back by less are messages out of order."""
SILENCE_S: Final = 1.0
"""Added to the allowed gap before a stream that sends nothing counts as lost: its messages may be
under way on a slow link, and their stamps will tell."""


class Lost(Exception):
    """The episode cannot continue: a stream has stopped, or its clock was stepped."""


class Pace:
    """Watches one stream of an episode."""

    def __init__(self, name: str, gap_s: float) -> None:
        """`name` is for messages, such as "camera base (/topic)"."""
        self.name, self._gap_s = name, gap_s
        self.times_s: list[float] = []
        self._arrival_s = 0.0

    def take(self, time_s: float, arrival_s: float) -> bool:
        """Note a message; False if it is not newer than the last. Raises Lost."""
        if self.times_s:
            ahead_s, between_s = time_s - self.times_s[-1], arrival_s - self._arrival_s
            if ahead_s < -STEP_BACK_S:
                raise Lost(
                    f"{self.name}: its stamps went back by {-ahead_s:.2f} s; the clock was stepped"
                )
            if ahead_s <= 0:
                return False
            if ahead_s > self._gap_s and between_s < ahead_s / 2:
                raise Lost(
                    f"{self.name}: its stamps jumped ahead by {ahead_s:.2f} s within"
                    f" {between_s:.2f} s; the clock was stepped, or messages were lost"
                )
            if ahead_s > self._gap_s:
                raise Lost(f"{self.name}: nothing for {ahead_s:.2f} s, limit {self._gap_s:g} s")
        self.times_s.append(time_s)
        self._arrival_s = arrival_s
        return True

    def check(self, now_s: float) -> None:
        """Raise Lost if nothing has arrived for too long."""
        if self.times_s and now_s - self._arrival_s > self._gap_s + SILENCE_S:
            raise Lost(f"{self.name}: nothing since {now_s - self._arrival_s:.2f} s")
