"""Everything that the page shows, newest values only. Sections from any thread → one JSON state.

A source replaces whole sections; readers take the newest. Nothing is queued, so memory does not
grow with time or with viewers. `version` tells readers whether there is anything new.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

TICKS_KEPT: Final = 1200
"""A minute at 20 Hz, for the chart of a viewer that has just connected."""
STATE_S: Final = 0.1
"""The JSON text is made at most this often, however many viewers there are."""


@dataclass(frozen=True, eq=False, slots=True)
class Picture:
    """A camera image as the camera compressed it."""

    number: int
    """Counts images from 1."""
    content: bytes
    at_s: float
    """When the camera took it, as far as that is known, on our monotonic clock."""


@dataclass(frozen=True, slots=True)
class TickMark:
    """One tick in the chart."""

    number: int
    policy_ms: float | None
    hold: str | None


class Board:
    """The newest of everything; every method may be called from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sections: dict[str, Any] = {}
        self._times_s: dict[str, float] = {}
        self._ticks: deque[TickMark] = deque(maxlen=TICKS_KEPT)
        self._text: tuple[float, int, str] = (float("-inf"), -1, "")
        self.version = 0
        """Grows with each change."""
        self.picture: Picture | None = None
        """Of the base camera."""
        self.wrist_picture: Picture | None = None
        """Of the wrist camera, if there is one."""
        self.training_version = 0
        """Grows with each change of the training, which is too large to send every time."""
        self._training = "null"
        self.metrics: Mapping[str, Any] = {}
        """The loop's newest metrics, for /metrics."""

    def put(self, **sections: Any) -> None:
        """Replace these sections; None removes one."""
        now_s = self._clock()
        with self._lock:
            self._sections |= sections
            self._times_s |= dict.fromkeys(sections, now_s)
            self.version += 1

    def put_training(self, training: dict[str, Any]) -> None:
        """Replace what is shown of a training."""
        text = as_json(training)
        with self._lock:
            if text != self._training:
                self._training = text
                self.training_version += 1
                self.version += 1

    def put_picture(self, content: bytes, age_s: float = 0.0) -> None:
        """Replace the camera's image, which is `age_s` old already."""
        with self._lock:
            self.picture = self._after(self.picture, content, age_s)
            self.version += 1

    def put_wrist_picture(self, content: bytes, age_s: float = 0.0) -> None:
        """Replace the wrist camera's image, which is `age_s` old already."""
        with self._lock:
            self.wrist_picture = self._after(self.wrist_picture, content, age_s)
            self.version += 1

    def _after(self, before: Picture | None, content: bytes, age_s: float) -> Picture:
        return Picture(1 if before is None else before.number + 1, content, self._clock() - age_s)

    def mark(self, tick: TickMark) -> None:
        """Add a tick to the chart; the oldest one leaves it."""
        with self._lock:
            self._ticks.append(tick)

    def get(self, name: str) -> Any:
        """Return a section, or None."""
        return self._sections.get(name)

    def age_s(self, name: str) -> float | None:
        """Return how long ago a section was replaced; None if it never was."""
        at_s = self._times_s.get(name)
        return None if at_s is None else self._clock() - at_s

    def ticks_after(self, number: int) -> list[tuple[int, float | None, str | None]]:
        """Return the ticks of the chart that are newer than tick `number`."""
        with self._lock:
            newer = [tick for tick in self._ticks if tick.number > number]
        return [(tick.number, tick.policy_ms, tick.hold) for tick in newer]

    def state_text(self) -> str:
        """Return all sections and their ages as JSON."""
        now_s = self._clock()
        made_s, version, text = self._text
        if now_s - made_s < STATE_S and version == self.version:
            return text
        with self._lock:
            version = self.version
            sections = dict(self._sections)
            ages = {name: round(now_s - at_s, 2) for name, at_s in self._times_s.items()}
            pictures = {"camera": self.picture, "wrist": self.wrist_picture}
        ages |= {name: round(now_s - each.at_s, 2) for name, each in pictures.items() if each}
        text = as_json({**sections, "ages_s": ages})
        self._text = (now_s, version, text)
        return text

    def training_text(self) -> str:
        """Return what is shown of a training as JSON; "null" without one."""
        return self._training


def as_json(value: Any) -> str:
    """Return strict JSON for a browser: NaN and infinity become null."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if -1e300 < value < 1e300 else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
