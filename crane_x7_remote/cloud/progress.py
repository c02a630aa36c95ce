"""A log in pieces → whole lines for the terminal, and one line of progress. Pure but for the clock.

Lines come from a machine that others own: colours are removed, control characters escaped, secrets
masked. A progress bar's carriage returns end lines, too.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from crane_x7_remote.system.output import LineSplitter
from crane_x7_vla_rl.log_text import shown

ANSI: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")
OF_LEROBOT: Final = re.compile(r"step (?P<step>\d+) of (?P<steps>\d+), loss (?P<loss>[-+.\w]+)")
OF_OURS: Final = re.compile(r"\b(?P<figures>(?:step|update):\d.*)")
SETUP: Final = "setup_env: "
TAIL: Final = 40
LINE_LETTERS: Final = 500


@dataclass
class Progress:
    """What a log has told so far."""

    step: int | None = None
    steps: int | None = None
    loss: str | None = None
    figures: str | None = None
    """The line of a trainer that names no total."""
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL))
    """The last lines."""
    _splitter: LineSplitter = field(default_factory=LineSplitter)
    _first: tuple[int, float] | None = None
    """Step and time of the first line with figures."""
    _now_s: float = 0.0

    def feed(self, chunk: bytes, now_s: float) -> list[str]:
        """Return the lines that ended in `chunk`, fit to be printed."""
        return self._lines(list(self._splitter.feed(chunk)), now_s)

    def end(self, now_s: float) -> list[str]:
        """Return what stood behind the last line break."""
        return self._lines(list(self._splitter.end()), now_s)

    def forget(self) -> None:
        """Begin again with a new log, on another machine."""
        self._splitter, self._first = LineSplitter(), None
        self.tail.clear()

    def line(self, dollars: float, limit: float | None = None) -> str | None:
        """Return the line of progress; None before the first figures."""
        money = f"${dollars:.2f} so far" + (f" of ${limit:g}" if limit is not None else "")
        if self.step is None or self.steps is None:
            return None if self.figures is None else f"{self.figures} · {money}"
        parts = [f"step {self.step} of {self.steps}", f"loss {self.loss}"]
        if self._first is not None and self.step > self._first[0]:
            each_s = (self._now_s - self._first[1]) / (self.step - self._first[0])
            parts += [
                f"{each_s:.2g} s per step",
                f"{_left((self.steps - self.step) * each_s)} left",
            ]
        return " · ".join([*parts, money])

    def _lines(self, whole: list[str], now_s: float) -> list[str]:
        found = []
        for text in whole:
            for part in ANSI.sub("", text).split("\r"):
                if part.strip():
                    found.append(shown(part.rstrip(), LINE_LETTERS))
                    self._take(found[-1], now_s)
        self.tail.extend(found)
        return found

    def _take(self, line: str, now_s: float) -> None:
        if match := OF_LEROBOT.search(line):
            self.step, self.steps = int(match["step"]), int(match["steps"])
            self.loss, self._now_s = match["loss"], now_s
            if self._first is None or self.step < self._first[0]:
                self._first = (self.step, now_s)
        elif match := OF_OURS.search(line):
            self.figures = match["figures"][:120]


def _left(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
