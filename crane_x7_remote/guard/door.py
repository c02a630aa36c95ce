"""Who may connect. Opening requests → a place, or an HTTP status with the reason.

Knows which connections have a place, and of which kind. Everything runs on the event loop.
"""

from __future__ import annotations

import asyncio
import hmac
import http
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from crane_x7_remote.addresses import is_loopback
from crane_x7_remote.guard.limits import CountedConnection
from crane_x7_remote.guard.uplink import Uplink

STOP_PATH = "/stop"
"""A connection that may only stop, resume and read the state. It needs no rosbridge and no free
place; from this machine, stopping needs no token."""
STOP_PLACES = 4
UPSTREAM_WAIT_S = 1.0
"""How long a new client waits for a rosbridge that is starting."""
MOST_HANDSHAKES = 300
"""Most handshakes at a time; one more ends the oldest. A normal one takes milliseconds."""


@dataclass(frozen=True)
class DoorConfig:
    """Who may connect."""

    token: str | None = field(default=None, repr=False)
    max_clients: int = 8


class Door:
    """Manages the places of one gate."""

    def __init__(self, config: DoorConfig, uplink: Uplink) -> None:
        self._config = config
        self._uplink = uplink
        self._shaking: dict[CountedConnection, None] = {}
        """Connections that have not sent their request yet, oldest first."""
        self._drivers: set[CountedConnection] = set()
        self._stoppers: set[CountedConnection] = set()
        self.turned_away: Counter[str] = Counter()
        """Count of refused connections, by HTTP status or by reason of the close."""

        class Connection(CountedConnection):
            on_made = self._on_made
            on_lost = self._on_lost

        self.connection_class = Connection
        """The class of the server's connections."""

    def is_driver(self, connection: CountedConnection) -> bool:
        """Whether the connection has one of the places for clients of rosbridge."""
        return connection in self._drivers

    def may_resume(self, connection: CountedConnection) -> bool:
        """Whether the connection may resume: like driving, it needs the token, if one is set."""
        request = connection.request
        return request is not None and self._is_right(request.headers.get_all("Authorization"))

    async def admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Admit a client, or answer with an HTTP status and the reason."""
        assert isinstance(connection, CountedConnection)
        self._shaking.pop(connection, None)
        refusal = self._judge(connection, request)
        if refusal is None and connection in self._drivers and not await self._is_reached():
            cause = self._uplink.last_error or "not connected yet"
            refusal = (503, f"the guard cannot reach rosbridge: {cause}")
        if refusal is None:
            return None
        status, text = refusal
        self._drivers.discard(connection)
        self.turned_away[str(status)] += 1
        response = connection.respond(http.HTTPStatus(status), f"guard: {text}\n")
        if status == http.HTTPStatus.UNAUTHORIZED:
            response.headers["WWW-Authenticate"] = "Bearer"
        return response

    async def _is_reached(self) -> bool:
        try:
            async with asyncio.timeout(UPSTREAM_WAIT_S):
                await self._uplink.up.wait()
        except TimeoutError:
            return False
        return True

    def _judge(self, connection: CountedConnection, request: Request) -> tuple[int, str] | None:
        """Give the connection a place, or return an HTTP status and the reason."""
        path = request.path.partition("?")[0]
        if path not in ("/", STOP_PATH):
            return 404, "path not found; rosbridge is at /"
        if request.headers.get_all("Origin"):
            return 403, "web pages may not drive the robot"
        given = request.headers.get_all("Authorization")
        is_known = self._is_right(given)
        if path == STOP_PATH:
            if not is_known and (given or not is_loopback(str(connection.remote_address[0]))):
                return 401, "the token is missing or wrong; set ROSBRIDGE_TOKEN to the guard's"
            if len(self._stoppers) >= STOP_PLACES:
                return 503, f"{STOP_PLACES} other clients are stopping the arm already"
            self._stoppers.add(connection)
            return None
        if not is_known:
            return 401, "the token is missing or wrong; set ROSBRIDGE_TOKEN to the guard's"
        if len(self._drivers) >= self._config.max_clients:
            return 503, f"{self._config.max_clients} clients are connected (GUARD_MAX_CLIENTS)"
        self._drivers.add(connection)
        return None

    def _is_right(self, given: Sequence[str]) -> bool:
        token = self._config.token
        if token is None:
            return True
        wanted = f"Bearer {token}".encode()
        return len(given) == 1 and hmac.compare_digest(
            given[0].encode(errors="surrogateescape"), wanted
        )

    def _on_made(self, connection: CountedConnection) -> None:
        self._shaking[connection] = None
        if len(self._shaking) > MOST_HANDSHAKES:
            oldest = next(iter(self._shaking))
            del self._shaking[oldest]
            self.turned_away["too many handshakes"] += 1
            oldest.transport.abort()

    def _on_lost(self, connection: CountedConnection) -> None:
        self._shaking.pop(connection, None)
        self._drivers.discard(connection)
        self._stoppers.discard(connection)
        if connection.flooded is not None:
            self.turned_away["flood"] += 1
