"""State of the guard next to the robot. Its messages → whether it guards us, why it stopped.

A guard sends each client that client's number; the states that it publishes on the robot's side
have no number. So a loop that reaches rosbridge without the guard does not count as guarded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

STATE_TOPIC = "/vla/guard"
"""std_msgs/String with JSON, about once a second and at each change."""
SILENCE_S = 3.0
"""A guard that was silent for longer counts as absent."""


class GuardState:
    """The newest state; `hear` may be called from another thread."""

    def __init__(self) -> None:
        self._heard_s: float | None = None
        self._stopped: str | None = None
        self.stops = 0
        """How often the guard was heard to have stopped; a stop may end before anybody looks."""
        self.last_stop = ""
        """Why it stopped then."""

    def hear(self, message: Mapping[str, Any], now_s: float) -> None:
        """Process a state message; ignore anything else."""
        try:
            state = json.loads(message["data"])
            is_ours = isinstance(state["you"], int)
            stopped = state["stopped"]
        except (KeyError, TypeError, ValueError, RecursionError):
            return
        if is_ours:
            before, self._stopped = self._stopped, stopped if isinstance(stopped, str) else None
            self._heard_s = now_s
            if self._stopped is not None and before is None:
                self.last_stop = self._stopped
                self.stops += 1

    def link_came_up(self) -> None:
        """Forget the state: a new link may have no guard."""
        self._heard_s = self._stopped = None

    def is_there(self, now_s: float) -> bool:
        """Whether a guard checks what this loop sends."""
        return self._heard_s is not None and now_s - self._heard_s <= SILENCE_S

    def stopped(self, now_s: float) -> str | None:
        """Return why the guard lets nothing pass; None if it passes, or there is no guard."""
        return self._stopped if self.is_there(now_s) else None
