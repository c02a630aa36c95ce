"""Payloads that wait for one client: replies first, then topic messages, oldest dropped. No I/O.

Real rosbridge drops nothing here and grows without bound with a slow client; `backlog=None` does
the same. The server takes payloads out when the socket has room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

Payload = str | bytes

MOST_REPLIES = 1000
"""Replies that may wait; with more, a client that requests them without reading is no longer
read."""
MOST_WAITING_BYTES = 16 * 1024 * 1024
"""Size of waiting topic messages with a bounded backlog; the newest one waits at any size."""


class ClientOutbox:
    """A bounded queue of payloads; calls `on_waiting` after every addition."""

    def __init__(self, backlog: int | None, on_waiting: Callable[[], None]) -> None:
        self._replies: deque[Payload] = deque()
        self._messages: deque[Payload] = deque()
        self._backlog = backlog
        self._waiting_bytes = 0
        self._on_waiting = on_waiting
        self.dropped = 0
        """Topic messages dropped for newer ones."""

    @property
    def is_flooded(self) -> bool:
        """Whether too many replies wait, so that the client should not be read for now."""
        return len(self._replies) >= MOST_REPLIES

    def reply(self, payload: Payload) -> None:
        """Queue a reply to the client; replies are never dropped."""
        self._replies.append(payload)
        self._on_waiting()

    def message(self, payload: Payload) -> None:
        """Queue a topic message, in place of the oldest ones if the backlog is full."""
        while self._messages and not self._has_room(payload):
            self._drop_oldest()
            self.dropped += 1
        self._messages.append(payload)
        self._waiting_bytes += len(payload)
        self._on_waiting()

    def take(self) -> Payload | None:
        """Return the next payload to send, None if nothing waits."""
        if self._replies:
            return self._replies.popleft()
        return self._drop_oldest() if self._messages else None

    def _has_room(self, payload: Payload) -> bool:
        if self._backlog is None:
            return True
        size = self._waiting_bytes + len(payload)
        return len(self._messages) < self._backlog and size <= MOST_WAITING_BYTES

    def _drop_oldest(self) -> Payload:
        payload = self._messages.popleft()
        self._waiting_bytes -= len(payload)
        return payload
