"""State of each part of a container, since when, and what to do about it.

Each change of state is one log line. No I/O; the clocks are handed in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from crane_x7_vla_rl.log_text import shown

logger = logging.getLogger(__name__)

State = Literal["off", "starting", "up", "down"]
PARTS = ("tunnel", "sshd", "role", "robot")


@dataclass(frozen=True)
class Part:
    """The current state of one part."""

    state: State
    since_s: float
    """Monotonic clock."""
    since: datetime
    detail: str
    advice: str = ""
    """What to do; empty while the part is up."""


class StatusBoard:
    """The parts by name; each starts as `off`: not in use."""

    def __init__(self, monotonic: Callable[[], float], now: Callable[[], float]) -> None:
        """`monotonic` counts seconds; `now` gives seconds since 1970."""
        self._monotonic = monotonic
        self._now = now
        self._parts = {name: self._part("off", "not in use") for name in PARTS}

    def set(self, name: str, state: State, detail: str, advice: str = "") -> None:
        """Record the state of part `name`; its time is kept while the state stays the same.

        Detail and advice may quote other programs: they are stored without secrets, in one line.
        """
        detail, advice = shown(detail), shown(advice)
        before = self._parts[name]
        if state == before.state:
            self._parts[name] = replace(before, detail=detail, advice=advice)
            return
        self._parts[name] = self._part(state, detail, advice)
        level = logging.WARNING if state == "down" else logging.INFO
        logger.log(level, "%s is %s: %s%s", name, state, detail, f"; {advice}" if advice else "")

    def __getitem__(self, name: str) -> Part:
        return self._parts[name]

    @property
    def healthy(self) -> bool:
        """Whether every part in use is up."""
        return all(part.state in ("off", "up") for part in self._parts.values())

    def as_json(self) -> dict[str, Any]:
        """Return all parts as plain values; `for_s` are seconds in this state."""
        now_s = self._monotonic()
        return {"healthy": self.healthy} | {
            name: {
                "state": part.state,
                "since": part.since.isoformat(timespec="seconds"),
                "for_s": round(now_s - part.since_s, 1),
                "detail": part.detail,
                "advice": part.advice,
            }
            for name, part in self._parts.items()
        }

    def _part(self, state: State, detail: str, advice: str = "") -> Part:
        since = datetime.fromtimestamp(self._now(), UTC)
        return Part(state, self._monotonic(), since, detail, advice)
