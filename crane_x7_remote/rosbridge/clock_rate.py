"""How fast a robot's clock runs. Stamps, arrivals → its rate if that is not real time. Pure.

A simulator at 0.6 of real time stamps its messages on a clock that advances 0.6 s per second; every
age by stamp then grows without limit. Delays can grow, too, but not steadily for seconds.
"""

from __future__ import annotations

from itertools import pairwise

BIN_S = 0.5
BINS = 5
"""The fastest messages of this many half seconds in a row must agree on the rate."""
LEAST = 0.05
"""A rate this near to 1 is not reported; a clock may be slewed."""
ALIKE = 0.4
"""Changes from one bin to the next may differ by this share."""


class ClockRate:
    """Watches one topic."""

    def __init__(self) -> None:
        self.rate: float | None = None
        """Seconds that the stamps advance per second; None while that is about 1, or unknown. Kept
        over a reconnect, until half seconds with the right rate were measured."""
        self._bins: list[tuple[int, float]] = []

    def restart(self) -> None:
        """Restart the measurement: the link is new."""
        self._bins = []

    def observe(self, stamp_s: float, arrival_s: float) -> None:
        """Process one message."""
        index, offset_s = int(arrival_s // BIN_S), stamp_s - arrival_s
        bins = self._bins
        if bins and bins[-1][0] == index:
            bins[-1] = (index, max(bins[-1][1], offset_s))
            return
        if bins and bins[-1][0] != index - 1:
            bins.clear()
        elif len(bins) == BINS:
            self._judge()
            del bins[0]
        bins.append((index, offset_s))

    def _judge(self) -> None:
        offsets = [offset_s for _, offset_s in self._bins]
        changes = [after - before for before, after in pairwise(offsets)]
        mean = sum(changes) / len(changes)
        if abs(mean) <= LEAST * BIN_S / 2:
            self.rate = None
        elif abs(mean) > LEAST * BIN_S and all(
            abs(change - mean) <= ALIKE * abs(mean) + 0.005 for change in changes
        ):
            self.rate = 1 + mean / BIN_S
