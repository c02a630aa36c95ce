"""What waits to be sent to one client: replies first, then topic messages, the oldest dropped.

Real rosbridge drops nothing here and grows without bound under a slow client; `backlog=None`
behaves like it. No I/O: the server takes payloads out when the socket has room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

Payload = str | bytes

MOST_REPLIES = 1000
"""Answers that may wait before a client that provokes them without reading is no longer read."""


class Outbox:
    """A bounded queue of payloads; calls `on_waiting` whenever something was put in."""

    def __init__(self, backlog: int | None, on_waiting: Callable[[], None]) -> None:
        self._replies: deque[Payload] = deque()
        self._messages: deque[Payload] = deque(maxlen=backlog)
        self._on_waiting = on_waiting
        self.dropped = 0
        """Topic messages that a newer one pushed out."""

    @property
    def is_flooded(self) -> bool:
        """Whether so many replies wait that the client should not be listened to for now."""
        return len(self._replies) >= MOST_REPLIES

    def reply(self, payload: Payload) -> None:
        """Queue an answer to the client; answers are never dropped."""
        self._replies.append(payload)
        self._on_waiting()

    def message(self, payload: Payload) -> None:
        """Queue a topic message, in place of the oldest one if the backlog is full."""
        if len(self._messages) == self._messages.maxlen:
            self.dropped += 1
        self._messages.append(payload)
        self._on_waiting()

    def take(self) -> Payload | None:
        """Return the next payload to send, None if nothing waits."""
        if self._replies:
            return self._replies.popleft()
        return self._messages.popleft() if self._messages else None
