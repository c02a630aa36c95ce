"""A queue of payloads for one link, bounded by count and bytes; the oldest is dropped and counted.

Event loop → queue → WebSocket. Payloads are not decoded: on a slow link the newest survive.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from websockets.asyncio.connection import Connection, broadcast

Payload = str | bytes


@dataclass(frozen=True)
class QueueLimit:
    """How many bytes may wait; a single payload may always."""

    count: int
    total_bytes: int


class LinkOutbox:
    """One link's queue; not thread-safe."""

    def __init__(self, bound: QueueLimit) -> None:
        self._bound = bound
        self._waiting: deque[Payload] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()
        self._link: Connection | None = None
        self.dropped = 0
        """Count of payloads that newer ones replaced."""

    def put(self, payload: Payload) -> None:
        """Send a payload immediately if the link is free; else queue it, replacing the oldest ones
        if the queue is full."""
        link = self._link
        if (
            link is not None
            and not self._waiting
            and link.transport.get_write_buffer_size() == 0  # nothing older is left
        ):
            broadcast([link], payload)  # does not wait; skips a closed link
            return
        self._waiting.append(payload)
        self._bytes += len(payload)
        while len(self._waiting) > 1 and (
            len(self._waiting) > self._bound.count or self._bytes > self._bound.total_bytes
        ):
            self._bytes -= len(self._waiting.popleft())
            self.dropped += 1
        self._changed.set()

    def clear(self) -> None:
        """Discard the queue: its link is closed, and the payloads would arrive too late."""
        self._waiting.clear()
        self._bytes = 0

    async def send_to(self, link: Connection) -> None:
        """Send payloads as fast as `link` accepts them, until it breaks (ConnectionClosed)."""
        self._link = link
        try:
            while True:
                while self._waiting:
                    payload = self._waiting.popleft()
                    self._bytes -= len(payload)
                    await link.send(payload)
                self._changed.clear()
                await self._changed.wait()
        finally:
            self._link = None
