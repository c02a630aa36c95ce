"""The guard's own connection to rosbridge, watched by pings and reopened when it dies.

Messages of subscribed topics → `hear`, on the event loop. What is published waits in a short outbox
that keeps the newest. `changed` is called each time the link comes up or goes down.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import WebSocketException

from crane_x7_remote.guard.outbox import LinkOutbox, QueueLimit
from crane_x7_remote.rosbridge import protocol
from crane_x7_remote.rosbridge.connection import (
    LinkConfig,
    close_link,
    explain,
    open_link,
    pause_s,
    watch,
)
from crane_x7_remote.rosbridge.protocol import brief

logger = logging.getLogger(__name__)

LONGEST_PAUSE_S = 0.5
"""Pause between two attempts: rosbridge is on the same machine, and a client waits."""
BOUND = QueueLimit(count=8, total_bytes=512 * 1024)
"""How much may wait for a rosbridge that does not read: one or two trajectories on both topics."""
MOST_STATUS_KINDS = 32


@dataclass(frozen=True)
class UplinkConfig:
    """The guard's own topics."""

    link: LinkConfig
    subscribed: Mapping[str, str]
    """Topic → type."""
    advertised: Mapping[str, str]
    latched: frozenset[str] = frozenset()
    """Topics of `advertised` whose last message is sent to late subscribers."""


class Uplink:
    """One connection with reconnects; everything runs on the event loop."""

    def __init__(
        self,
        config: UplinkConfig,
        hear: Callable[[str, Mapping[str, Any]], None],
        changed: Callable[[bool], None],
    ) -> None:
        self._config = config
        self._hear = hear
        self._changed = changed
        self._outbox = LinkOutbox(BOUND)
        self._statuses: set[str] = set()
        self.is_up = False
        self.up = asyncio.Event()
        """Set while the link is up."""
        self.connections = 0
        self.unreadable = 0
        self.last_error: str | None = None

    @property
    def dropped(self) -> int:
        """Count of messages that rosbridge did not accept in time."""
        return self._outbox.dropped

    def publish(self, topic: str, message: Mapping[str, Any]) -> bool:
        """Send now; False if the link is down, and the message is dropped. Raises ValueError for a
        value that JSON cannot represent."""
        if not self.is_up:
            return False
        operation = protocol.publish(topic, message)
        self._outbox.put(json.dumps(operation, allow_nan=False, separators=(",", ":")))
        return True

    async def run(self) -> None:
        """Connect until cancelled."""
        clock = asyncio.get_running_loop().time
        failures = 0
        while True:
            started_s = clock()
            await self._connect_once()
            failures = 0 if clock() - started_s > 1.0 else failures + 1
            await asyncio.sleep(min(LONGEST_PAUSE_S, pause_s(failures, random.random())))

    async def _connect_once(self) -> None:
        link: ClientConnection | None = None
        try:
            link = await open_link(self._config.link)
            await self._greet(link)
            self._note_up()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(watch(link, self._config.link, lambda _: None))
                tasks.create_task(self._outbox.send_to(link))
                await self._receive(link)
        except (OSError, WebSocketException, ExceptionGroup) as error:
            self._note_error(error)
        finally:
            self._note_down()
            if link is not None:
                await close_link(link)

    async def _greet(self, link: ClientConnection) -> None:
        for topic, kind in self._config.advertised.items():
            operation = protocol.advertise(topic, kind, id=f"guard:advertise:{topic}")
            operation |= {"latch": topic in self._config.latched}
            await link.send(protocol.encode_json(operation))
        for topic, kind in self._config.subscribed.items():
            operation = protocol.subscribe(topic, kind, id=f"guard:{topic}")
            await link.send(protocol.encode_json(operation))

    async def _receive(self, link: ClientConnection) -> None:
        async for payload in link:
            try:
                operation = protocol.decode(payload)
            except protocol.ProtocolError as error:
                self.unreadable += 1
                logger.debug("from rosbridge: %s", error)
                continue
            topic, message = operation.get("topic"), operation.get("msg")
            if operation["op"] == "status":
                self._note_status(operation)
            elif isinstance(topic, str) and isinstance(message, Mapping):
                self._hear(topic, message)
        raise ConnectionError("closed by the server")

    def _note_status(self, operation: Mapping[str, Any]) -> None:
        """Log each status message of rosbridge once."""
        text = f"{brief(operation.get('level'))}: {brief(operation.get('msg'))}"
        if text not in self._statuses and len(self._statuses) < MOST_STATUS_KINDS:
            self._statuses.add(text)
            logger.warning("status of rosbridge: %s", text)

    def _note_up(self) -> None:
        self.connections += 1
        self.last_error = None
        self._outbox.clear()
        self.is_up = True
        self.up.set()
        logger.info("connected to rosbridge at %s", self._config.link.uri)
        self._changed(True)

    def _note_error(self, error: BaseException) -> None:
        text = explain(error, self._config.link)
        for name in ("ROSBRIDGE_HOST", "ROSBRIDGE_PORT"):
            text = text.replace(name, "GUARD_UPSTREAM")
        if text != self.last_error:
            logger.warning("rosbridge at %s: %s", self._config.link.uri, text)
        self.last_error = text

    def _note_down(self) -> None:
        if self.is_up:
            self.is_up = False
            self.up.clear()
            self._outbox.clear()
            self._changed(False)
