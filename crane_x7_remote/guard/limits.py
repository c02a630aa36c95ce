"""Limits on one client: bytes and frames a second, handshakes, complaints.

A client's bytes are cut into frames and counted before its messages are read, so that a flood costs
a few milliseconds of the event loop and then its own connection, and delays no other client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from websockets.asyncio.server import ServerConnection

FRAMES_PER_S, MOST_FRAMES_AT_ONCE = 1000.0, 500.0
"""A loop at 200 Hz sends 800; what a relay held back for half a second comes at once."""
BYTES_PER_S, MOST_BYTES_AT_ONCE = 4e6, 2e6
SLICE_BYTES = 4096
"""At most so much is parsed between two looks at the budget: some 600 of the smallest frames."""
LINGER_S = 1.0
"""How long a rejected client may take to close its end."""
POLICY_VIOLATION = 1008
"""Close code of RFC 6455, section 7.4.1."""

TELLS_PER_S, MOST_TELLS_AT_ONCE = 2.0, 10.0
REPEAT_S = 10.0
"""The same kind of refusal is told to a client, and logged, at most so often."""


class Budget:
    """A token bucket; `take` says whether there was enough."""

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
    """Which refusals are told and which are counted alone: no flood is answered by a flood."""

    def __init__(self) -> None:
        self._budget = Budget(TELLS_PER_S, MOST_TELLS_AT_ONCE)
        self._told_s: dict[str, float] = {}

    def may_tell(self, kind: str, now_s: float) -> bool:
        """Whether a refusal of this kind is to be told now. Kinds are names of ours: few."""
        last_s = self._told_s.get(kind)
        if last_s is not None and now_s - last_s < REPEAT_S:
            return False
        if not self._budget.take(1, now_s):
            return False
        self._told_s[kind] = now_s
        return True


class CountedConnection(ServerConnection):
    """A client's connection that is closed when more comes than a client may send."""

    on_made: Callable[[CountedConnection], None]
    on_lost: Callable[[CountedConnection], None]
    """Set on a subclass, by the server."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._frames = Budget(FRAMES_PER_S, MOST_FRAMES_AT_ONCE)
        self._bytes = Budget(BYTES_PER_S, MOST_BYTES_AT_ONCE)
        self.flooded: str | None = None
        """What there was too much of."""

    def connection_made(self, transport: Any) -> None:
        """Tell that there is one more, which has not shaken hands yet."""
        super().connection_made(transport)
        type(self).on_made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell that it has gone, whether it ever shook hands or not."""
        super().connection_lost(exc)
        type(self).on_lost(self)

    def data_received(self, data: bytes) -> None:
        """Feed what came in slices, until the client has sent too much."""
        if self.flooded is None and not self._bytes.take(len(data), self.loop.time()):
            self._refuse(f"more than {BYTES_PER_S / 1e6:g} MB a second")
        if self.flooded is not None:
            return
        for start in range(0, len(data), SLICE_BYTES):
            super().data_received(data[start : start + SLICE_BYTES])
            if self.flooded is not None:
                return

    def process_event(self, event: Any) -> None:
        """Count each frame, pings and fragments as well."""
        if self.flooded is not None:
            return
        if not self._frames.take(1, self.loop.time()):
            self._refuse(f"more than {FRAMES_PER_S:g} messages a second")
            return
        super().process_event(event)

    def _refuse(self, what: str) -> None:
        """Close with the reason; what else comes is thrown away unread."""
        self.flooded = what
        if self.request is None:
            self.transport.abort()
            return
        self.protocol.fail(POLICY_VIOLATION, what)
        self.send_data()
        self.recv_messages.close()
        self.loop.call_later(LINGER_S, self.transport.abort)
