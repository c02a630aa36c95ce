"""State of the guard next to the robot. Its messages → whether it guards us, why it stopped.

A guard sends each client that client's number; the states that it publishes on the robot's side
have no number. So a loop that reaches rosbridge without the guard does not count as guarded.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

STATE_TOPIC = "/vla/guard"
"""std_msgs/String with JSON, about once a second and at each change."""
SILENCE_S = 3.0
"""A guard that was silent for longer counts as absent."""
UNHEARD = "unknown why: it passed again, or had restarted, before its state came"


class GuardState:
    """The newest state; `hear` may be called from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heard_s: float | None = None
        self._stopped: str | None = None
        self._counted: int | None = None
        """The guard's own number of stops; kept over a reconnect, during which it may stop."""
        self._you: int | None = None
        """Our number at the guard; another one shows another link."""
        self._is_awaited = False
        """Whether no state has come since `link_came_up`."""
        self._is_ahead = False
        """Whether states of a new link came before `link_came_up`."""
        self.was_there = False
        """Whether a guard was ever heard."""
        self.stops = 0
        """How often the guard has stopped, as far as it is known; a stop may end before anybody
        looks, and while the link is down."""
        self.last_stop = ""
        """Why it stopped then."""

    def hear(self, message: Mapping[str, Any], now_s: float) -> None:
        """Process a state message; ignore anything else."""
        try:
            state = json.loads(message["data"])
            you, stopped = state["you"], state["stopped"]
        except (KeyError, TypeError, ValueError, RecursionError):
            return
        if isinstance(you, int):
            why = stopped if isinstance(stopped, str) else None
            with self._lock:
                self._hear(you, why, state.get("stops"), now_s)

    def _hear(self, you: int, stopped: str | None, counted: object, now_s: float) -> None:
        has_stopped = stopped is not None and self._stopped is None
        if isinstance(counted, int):
            if self._counted is not None:
                has_stopped = counted != self._counted  # less: the guard was restarted
            self._counted = counted
        if you != self._you and not self._is_awaited:
            self._is_ahead = True
        self._is_awaited = False
        self._you, self._stopped, self._heard_s, self.was_there = you, stopped, now_s, True
        if has_stopped:
            self.last_stop = stopped or UNHEARD
            self.stops += 1

    def link_came_up(self) -> None:
        """Forget the state, unless it came on the new link already: that may have no guard."""
        with self._lock:
            if not self._is_ahead:
                self._heard_s, self._stopped, self._is_awaited = None, None, True
            self._is_ahead = False

    def is_there(self, now_s: float) -> bool:
        """Whether a guard checks what this loop sends."""
        heard_s = self._heard_s
        return heard_s is not None and now_s - heard_s <= SILENCE_S

    def stopped(self, now_s: float) -> str | None:
        """Return why the guard lets nothing pass; None if it passes, or there is no guard."""
        return self._stopped if self.is_there(now_s) else None
