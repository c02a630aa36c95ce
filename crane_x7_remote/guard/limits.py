"""Limits on one client: bytes and frames per second, handshakes, reported refusals.

A client's bytes are split into frames and counted before its messages are read. A flood costs a few
milliseconds of the event loop, then its connection is closed; it does not delay other clients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from websockets.asyncio.server import ServerConnection

FRAMES_PER_S, MOST_FRAMES_AT_ONCE = 1000.0, 500.0
"""A loop at 200 Hz sends 800; a relay may hold back half a second and send it in one burst."""
BYTES_PER_S, MOST_BYTES_AT_ONCE = 4e6, 2e6
SLICE_BYTES = 4096
"""At most this much is parsed between two checks of the budget: about 600 smallest frames."""
LINGER_S = 1.0
"""How long a refused client may take to close its end."""
POLICY_VIOLATION = 1008
"""Close code of RFC 6455, section 7.4.1."""

TELLS_PER_S, MOST_TELLS_AT_ONCE = 2.0, 10.0
REPEAT_S = 10.0
"""The same kind of refusal is reported to a client, and logged, at most this often."""


class Budget:
    """A token bucket; `take` returns whether there was enough."""

    def __init__(self, per_s: float, most: float) -> None:
        self._per_s = per_s
        self._most = most
        self._left = most
        self._last_s: float | None = None

    def take(self, amount: float, now_s: float) -> bool:
        """Take `amount` at our monotonic `now_s`; False when that is more than is left."""
        if self._last_s is not None:
            self._left = min(self._most, self._left + (now_s - self._last_s) * self._per_s)
        self._last_s = now_s
        self._left -= amount
        return self._left >= 0


class Complaints:
    """Decides which refusals are reported and which only counted: no flood may cause another."""

    def __init__(self) -> None:
        self._budget = Budget(TELLS_PER_S, MOST_TELLS_AT_ONCE)
        self._told_s: dict[str, float] = {}

    def may_tell(self, kind: str, now_s: float) -> bool:
        """Whether to report a refusal of this kind now. Kinds are the guard's own names: few."""
        last_s = self._told_s.get(kind)
        if last_s is not None and now_s - last_s < REPEAT_S:
            return False
        if not self._budget.take(1, now_s):
            return False
        self._told_s[kind] = now_s
        return True


class CountedConnection(ServerConnection):
    """A client's connection that is closed when the client sends too much."""

    on_made: Callable[[CountedConnection], None]
    on_lost: Callable[[CountedConnection], None]
    """Set on a subclass, by the server."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._frames = Budget(FRAMES_PER_S, MOST_FRAMES_AT_ONCE)
        self._bytes = Budget(BYTES_PER_S, MOST_BYTES_AT_ONCE)
        self.flooded: str | None = None
        """The limit that the client exceeded."""

    def connection_made(self, transport: Any) -> None:
        """Report a new connection, before its handshake."""
        super().connection_made(transport)
        type(self).on_made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Report that the connection has ended, with or without a handshake."""
        super().connection_lost(exc)
        type(self).on_lost(self)

    def data_received(self, data: bytes) -> None:
        """Feed what came in slices, until the client has sent too much."""
        if self.flooded is None and not self._bytes.take(len(data), self.loop.time()):
            self._refuse(f"more than {BYTES_PER_S / 1e6:g} MB per second")
        if self.flooded is not None:
            return
        for start in range(0, len(data), SLICE_BYTES):
            super().data_received(data[start : start + SLICE_BYTES])
            if self.flooded is not None:
                return

    def process_event(self, event: Any) -> None:
        """Count each frame, including pings and fragments."""
        if self.flooded is not None:
            return
        if not self._frames.take(1, self.loop.time()):
            self._refuse(f"more than {FRAMES_PER_S:g} messages per second")
            return
        super().process_event(event)

    def _refuse(self, what: str) -> None:
        """Close with the reason; further data is discarded unread."""
        self.flooded = what
        if self.request is None:
            self.transport.abort()
            return
        self.protocol.fail(POLICY_VIOLATION, what)
        self.send_data()
        self.recv_messages.close()
        self.loop.call_later(LINGER_S, self.transport.abort)
