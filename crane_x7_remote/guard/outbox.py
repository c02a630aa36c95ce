"""What waits to be sent on one link: bounded by count and bytes, the oldest is dropped and counted.

Payloads enter from the event loop and leave through a WebSocket. What a topic's payload holds is
not known here, so that it needs no decoding: under a link that is too slow the newest survive.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from websockets.asyncio.connection import Connection

Payload = str | bytes


@dataclass(frozen=True)
class Bound:
    """How much may wait; a single payload may always."""

    count: int
    total_bytes: int


class Outbox:
    """One link's queue; not thread-safe."""

    def __init__(self, bound: Bound) -> None:
        self._bound = bound
        self._waiting: deque[Payload] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()
        self.dropped = 0
        """Payloads that newer ones pushed out."""

    def put(self, payload: Payload) -> None:
        """Queue a payload, in place of the oldest ones where there is no room."""
        self._waiting.append(payload)
        self._bytes += len(payload)
        while len(self._waiting) > 1 and (
            len(self._waiting) > self._bound.count or self._bytes > self._bound.total_bytes
        ):
            self._bytes -= len(self._waiting.popleft())
            self.dropped += 1
        self._changed.set()

    def clear(self) -> None:
        """Forget what waits: its link has gone, and it would come too late."""
        self._waiting.clear()
        self._bytes = 0

    async def send_to(self, link: Connection) -> None:
        """Send what comes, as fast as `link` takes it, until it breaks (ConnectionClosed)."""
        while True:
            while self._waiting:
                payload = self._waiting.popleft()
                self._bytes -= len(payload)
                await link.send(payload)
            self._changed.clear()
            await self._changed.wait()
