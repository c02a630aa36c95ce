"""Opens, watches and closes one WebSocket to rosbridge; each cause of failure has its message."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from python_socks import ProxyConnectionError, ProxyError, ProxyTimeoutError
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.connection import Connection
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidMessage,
    InvalidProxy,
    InvalidStatus,
    InvalidURI,
)
from websockets.exceptions import ProxyError as WebSocketProxyError

from crane_x7_remote.addresses import without_password
from crane_x7_remote.rosbridge.protocol import MAX_MESSAGE_BYTES
from crane_x7_vla_rl.log_text import shown

SEND_BUFFER_BYTES = 64 * 1024
"""Bounds the kernel's send buffer for a stalled link: a few trajectories instead of hundreds."""


@dataclass(frozen=True)
class LinkConfig:
    """The server's address, and when a link counts as dead."""

    host: str
    port: int = 9090
    proxy: str | None = None
    """socks5h://host:port (names resolved there), socks5:// or http://."""
    open_timeout_s: float = 5.0
    ping_interval_s: float = 1.0
    ping_timeout_s: float = 0.9
    """With the interval, a dead link is found within 1.9 s."""
    max_message_bytes: int = MAX_MESSAGE_BYTES
    token: str | None = field(default=None, repr=False)
    """The token, if a guard in front of rosbridge requires one."""
    path: str = "/"

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the opening request."""
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}

    @property
    def uri(self) -> str:
        """The server's address; IPv6 in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ws://{host}:{self.port}{self.path.rstrip('/')}"


FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0


def pause_s(failures: int, chance: float) -> float:
    """Return how long to wait before the next attempt, after this many failures in a row.

    Doubled each time and capped; `chance` in 0 … 1 subtracts up to half, so that clients of one
    server do not reconnect at the same time.
    """
    longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures, 10))
    return longest * (1 - chance / 2)


LONGEST_CAUSE = 600
"""Characters."""


class DeadLinkError(ConnectionError):
    """No answer to a ping in time."""


async def open_link(config: LinkConfig) -> ClientConnection:
    """Open a WebSocket whose unsent bytes are discarded on close; raises errors for `explain`."""
    link = await connect(
        config.uri,
        proxy=config.proxy,
        additional_headers=config.headers,
        compression=None,  # images are compressed already
        open_timeout=config.open_timeout_s,
        close_timeout=0.5,
        ping_interval=None,  # see watch
        max_size=config.max_message_bytes,
        write_limit=4096,
    )
    bound_unsent(link)
    raw = link.transport.get_extra_info("socket")
    if raw is not None:
        # Closing resets: data that a dead link still held must not arrive later.
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return link


def bound_unsent(link: Connection) -> None:
    """Limit how much the kernel buffers for a peer that does not read."""
    raw = link.transport.get_extra_info("socket")
    if raw is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)


async def watch(
    link: Connection, config: LinkConfig, on_round_trip: Callable[[float], None]
) -> None:
    """Ping at the interval until the link is dead, then abort it and raise DeadLinkError.

    websockets' own keepalive is not used: its ping waits behind data that a dead link cannot take.
    """
    clock = asyncio.get_running_loop().time
    while True:
        started_s = clock()
        try:
            async with asyncio.timeout(config.ping_timeout_s):
                await (await link.ping())
        except TimeoutError as error:
            link.transport.abort()
            raise DeadLinkError(f"no answer to a ping in {config.ping_timeout_s} s") from error
        on_round_trip(clock() - started_s)
        await asyncio.sleep(max(0.0, started_s + config.ping_interval_s - clock()))


async def close_link(link: Connection) -> None:
    """Close in order, and by force if that fails."""
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(1.0):
            await link.close()
            return
    link.transport.abort()


def explain(error: BaseException, config: LinkConfig) -> str:
    """Return the cause as text, and the next thing to check."""
    return shown(_explain(error, config), LONGEST_CAUSE)


def _explain(error: BaseException, config: LinkConfig) -> str:
    if isinstance(error, BaseExceptionGroup):
        return _explain(error.exceptions[0], config)
    if isinstance(error, InvalidStatus):
        return _explain_status(error, config)
    if "refused" in str(error):  # asyncio combines the failures of several addresses into one text
        error = ConnectionRefusedError(str(error))
    for kinds, text in _causes(config):
        if isinstance(error, kinds):
            return text.replace("{error}", shown(error))
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}; check the network and that {config.host} is up"
    return f"{type(error).__name__}: {error}"


def _explain_status(error: InvalidStatus, config: LinkConfig) -> str:
    """Explain an HTTP answer instead of a WebSocket; the guard's answer contains the reason."""
    response = error.response
    said = (response.body or b"").decode(errors="replace")[:300]
    words = " ".join("".join(x if x.isprintable() else " " for x in said).split())
    hint = "; check ROSBRIDGE_PORT" if response.status_code not in (401, 403, 503) else ""
    return f"the server on port {config.port} answers HTTP {response.status_code}: {words}{hint}"


def _causes(config: LinkConfig) -> list[tuple[tuple[type[BaseException], ...], str]]:
    host, port = config.host, config.port
    proxy = without_password(config.proxy or "")
    return [
        (
            (socket.gaierror,),
            f"host name {host!r} is unknown; check ROSBRIDGE_HOST, and that the tailnet or DNS"
            " knows it",
        ),
        (
            (
                ProxyConnectionError,
                ProxyTimeoutError,
                ProxyError,
                WebSocketProxyError,
                InvalidProxy,
            ),
            f"the proxy {proxy} did not connect ({{error}}); check ROSBRIDGE_PROXY, that the"
            f" proxy runs, and that it can reach {host}",
        ),
        (
            (ConnectionRefusedError,),
            f"connection refused; is rosbridge_server running there, and on port {port}?",
        ),
        ((DeadLinkError,), "the link is dead ({error}); check the network or the tunnel"),
        (
            (TimeoutError,),
            f"no answer within {config.open_timeout_s:g} s; check that {host} is up and that no"
            f" firewall drops port {port}",
        ),
        (
            (InvalidHandshake, InvalidMessage, ssl.SSLError),
            f"the server on port {port} is not a WebSocket server ({{error}});"
            " check ROSBRIDGE_PORT",
        ),
        ((InvalidURI,), f"{config.uri} is not an address; check ROSBRIDGE_HOST"),
        ((ConnectionClosed,), "the server closed the connection ({error})"),
        ((ConnectionError,), "the connection was lost ({error})"),
    ]
