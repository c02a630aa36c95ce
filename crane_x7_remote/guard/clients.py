"""One client of the guard: its connection, and one to rosbridge for its subscriptions.

rosbridge → client: passed undecoded, which keeps the guard's latency small. Client → `handle`, one
message at a time; an allowed message returns through `forward` as a new operation. A client that
does not read loses its oldest messages; the connection of a silent one is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, WebSocketException

from crane_x7_remote.guard.limits import Complaints, CountedConnection
from crane_x7_remote.guard.outbox import LinkOutbox, QueueLimit
from crane_x7_remote.guard.requests import ACTION_TOPIC, Forward, Refused
from crane_x7_remote.rosbridge import protocol
from crane_x7_remote.rosbridge.connection import (
    DeadLinkError,
    LinkConfig,
    bound_unsent,
    close_link,
    explain,
    open_link,
    watch,
)

logger = logging.getLogger(__name__)

TO_CLIENT = QueueLimit(count=64, total_bytes=512 * 1024)
"""Six images of 80 KB: anything older is useless."""
TO_ROSBRIDGE = QueueLimit(count=64, total_bytes=256 * 1024)
PING_INTERVAL_S, PING_TIMEOUT_S = 1.0, 1.5
"""A client whose link is dead is closed within 2.5 s."""
MOST_SUBSCRIPTIONS = 64
TRY_AGAIN = 1013
"""Close code "try again later" of the IANA registry."""


class Client:
    """One connection, from handshake to close. Everything runs on the event loop."""

    def __init__(
        self,
        number: int,
        link: CountedConnection,
        upstream: LinkConfig | None,
        handle: Callable[[Client, str | bytes], None],
    ) -> None:
        """`upstream` None: a connection for stop and state only, which needs no rosbridge."""
        self.number = number
        self.link = link
        self.upstream = upstream
        self.may_resume = True
        self.follows: set[str] = set()
        """The guard's own topics that the client subscribes."""
        self.refused: Counter[str] = Counter()
        self._handle = handle
        self._subscriptions: set[tuple[str, str]] = set()
        self._complaints = Complaints()
        self._out = LinkOutbox(TO_CLIENT)
        self._up = LinkOutbox(TO_ROSBRIDGE)
        self._clock = asyncio.get_running_loop().time

    @property
    def dropped(self) -> int:
        """Count of messages that the client did not read in time."""
        return self._out.dropped

    # --- out -------------------------------------------------------------------------------------

    def send(self, operation: Mapping[str, Any]) -> None:
        """Send one of the guard's own operations."""
        self._out.put(protocol.encode_json(operation))

    def tell(self, level: protocol.StatusLevel, text: str, operation_id: str | None = None) -> None:
        """Send a status message."""
        self.send(protocol.status(level, text, operation_id))

    def refuse(self, refusal: Refused) -> None:
        """Count a refusal; report and log it, unless one of the same kind was just reported."""
        self.refused[refusal.kind] += 1
        text, action = str(refusal), refusal.action
        if refusal.kind == ACTION_TOPIC:  # every loop publishes it by default
            if self.refused[refusal.kind] == 1:
                logger.info("client %d: %s", self.number, text)
                self.tell("info", f"guard: {text}", refusal.operation_id)
            return
        if not self._complaints.may_tell(refusal.kind, self._clock()):
            return
        logger.warning("client %d: refused: %s", self.number, text)
        self.tell("error", f"guard: {text}", refusal.operation_id)
        if action is not None:
            name = refusal.operation_id or ""
            self.send(protocol.action_result(name, action, text, 0, False))

    def forward(self, request: Forward) -> None:
        """Send an operation to rosbridge on this client's connection; raises Refused."""
        if request.subscription is not None:
            self._note(request.subscription, request.ends)
        self._up.put(protocol.encode_json(request.operation))

    def _note(self, subscription: tuple[str, str], ends: bool) -> None:
        if ends:
            self._subscriptions.discard(subscription)
        elif subscription in self._subscriptions or len(self._subscriptions) < MOST_SUBSCRIPTIONS:
            self._subscriptions.add(subscription)
        else:
            raise Refused(
                "subscriptions",
                f"subscribe {subscription[0]}: more than {MOST_SUBSCRIPTIONS} subscriptions",
                subscription[1],
            )

    # --- in --------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Carry messages both ways until either end closes."""
        bound_unsent(self.link)
        try:
            async with contextlib.AsyncExitStack() as stack:
                jobs: list[Any] = []
                if self.upstream is not None:
                    upstream = await open_link(self.upstream)
                    stack.push_async_callback(close_link, upstream)
                    jobs = [self._listen(upstream), self._up.send_to(upstream)]
                await _until_one_ends(
                    [self._read(), self._out.send_to(self.link), self._watch(), *jobs]
                )
        except DeadLinkError as error:
            logger.warning("client %d does not answer: %s", self.number, error)
        except (OSError, WebSocketException) as error:
            if self.upstream is not None and not isinstance(error, ConnectionClosed):
                await self.close(f"rosbridge: {explain(error, self.upstream)}")
        finally:
            await close_link(self.link)

    async def close(self, reason: str) -> None:
        """Close the client's connection with a reason; the code tells the client to retry later."""
        with contextlib.suppress(TimeoutError, OSError, WebSocketException):
            async with asyncio.timeout(1.0):
                await self.link.close(TRY_AGAIN, reason.encode()[:120].decode(errors="ignore"))

    async def _read(self) -> None:
        async for payload in self.link:
            if self.link.flooded is not None:
                return
            self._handle(self, payload)
            await asyncio.sleep(0)  # other clients get their turn, however much waits

    async def _listen(self, upstream: ClientConnection) -> None:
        async for payload in upstream:
            self._out.put(payload)
        raise ConnectionError("rosbridge closed the connection")

    async def _watch(self) -> None:
        config = LinkConfig(
            "client", ping_interval_s=PING_INTERVAL_S, ping_timeout_s=PING_TIMEOUT_S
        )
        await watch(self.link, config, lambda _: None)


async def _until_one_ends(jobs: list[Any]) -> None:
    """Run coroutines until the first of them ends; raises its error."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
