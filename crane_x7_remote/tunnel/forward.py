"""A loopback port that leads to the robot, for programs without proxy support.

A client's bytes on 127.0.0.1 ↔ a SOCKS5 or HTTP proxy, or the robot directly. Backpressure replaces
a queue: a side that cannot take more pauses the other. An end of stream is passed on as an end, a
reset as a reset, so data that a dead link still held never reaches the robot later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import urllib.parse
from dataclasses import dataclass, field
from typing import cast

from python_socks import ProxyError, ProxyType
from python_socks.async_.asyncio import Proxy

from crane_x7_remote.addresses import read_proxy, without_password
from crane_x7_remote.errors import ForwardRefusedError, SettingsError
from crane_x7_remote.rosbridge.connection import SEND_BUFFER_BYTES, LinkConfig, explain

logger = logging.getLogger(__name__)

LISTEN_HOST = "127.0.0.1"
"""Never another address: a client of this port can move the robot."""
MAX_CLIENTS = 64
RESET_POLL_S = 0.2
TCP_CLOSE = 7
"""State of a reset connection, from Linux' include/net/tcp_states.h."""
RESET = struct.pack("ii", 1, 0)
"""For SO_LINGER: closing discards unsent data and resets the connection for the other end."""


@dataclass(frozen=True)
class ForwardConfig:
    """Destination and route."""

    target: LinkConfig
    """The robot's rosbridge; its proxy, and how long a connection may take."""
    listen_port: int = 0
    """0 picks a free port."""


@dataclass
class Traffic:
    """Counters of the traffic so far."""

    clients: int = 0
    """Clients connected now."""
    connections: int = 0
    failures: int = 0
    """Clients rejected because the robot could not be reached."""
    bytes_out: int = 0
    """Bytes towards the robot."""
    bytes_in: int = 0
    last_error: str | None = None
    """Why the newest connection failed; None if it succeeded."""


@dataclass
class _State:
    config: ForwardConfig
    traffic: Traffic = field(default_factory=Traffic)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    ends: set[_End] = field(default_factory=set)


class Forwarder:
    """Listens from `start` to `stop`, both on one event loop."""

    def __init__(self, config: ForwardConfig) -> None:
        self._state = _State(config)
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """The port in use, also if the configured one is 0."""
        if self._server is None:
            raise RuntimeError("the forwarder is not started, so it has no port yet")
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def traffic(self) -> Traffic:
        """Counters of the traffic so far; updated in place."""
        return self._state.traffic

    async def start(self) -> None:
        """Listen; raises ForwardRefusedError if the port is in use."""
        port = self._state.config.listen_port
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: _End(self._state, None), LISTEN_HOST, port
            )
        except OSError as error:
            raise ForwardRefusedError(
                f"cannot listen on {LISTEN_HOST}:{port}: {error.strerror}; end the program that"
                " uses the port, or choose another port with --listen-port"
            ) from error

    async def stop(self) -> None:
        """Stop listening and reset all connections."""
        if self._server is not None:
            self._server.close()
        for task in tuple(self._state.tasks):
            task.cancel()
        await asyncio.gather(*self._state.tasks, return_exceptions=True)
        for end in tuple(self._state.ends):
            end.reset()
        while self._state.ends:  # each removes itself in the event loop's next iteration
            await asyncio.sleep(0)
        if self._server is not None:
            await self._server.wait_closed()


class _End(asyncio.Protocol):
    """One of the two connections; its input goes to `other`.

    The client's end is created first, with `other` None, and reads nothing until the robot's end
    exists.
    """

    def __init__(self, state: _State, other: _End | None) -> None:
        self._state = state
        self._other = other
        self._is_client = other is None
        self._transport: asyncio.Transport | None = None
        self._ended = False
        """Whether its stream has ended."""
        self._watch: asyncio.TimerHandle | None = None

    # --- called by the event loop ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=SEND_BUFFER_BYTES)
        raw = self._transport.get_extra_info("socket")
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            raw.setsockopt(socket.SOL_SOCKET, buffer, SEND_BUFFER_BYTES)
        self._state.ends.add(self)
        if self._is_client:
            self._admit()

    def data_received(self, data: bytes) -> None:
        assert self._other is not None
        assert self._other._transport is not None
        if self._is_client:
            self._state.traffic.bytes_out += len(data)
        else:
            self._state.traffic.bytes_in += len(data)
        self._other._transport.write(data)

    def eof_received(self) -> bool:
        self._ended = True
        other = self._other
        assert other is not None
        assert other._transport is not None
        other._transport.write_eof()
        return not other._ended  # False closes this end after everything is written

    def pause_writing(self) -> None:
        if self._other is not None:
            self._other._pause()

    def resume_writing(self) -> None:
        if self._other is not None:
            self._other._resume()

    def connection_lost(self, error: Exception | None) -> None:
        self._unwatch()
        self._state.ends.discard(self)
        if self._is_client:
            self._state.traffic.clients -= 1
        if self._other is not None:
            if error is not None or not (self._ended and self._other._ended):
                self._other.reset()
            else:
                self._other._close()

    # --- both ends -------------------------------------------------------------------------------

    def reset(self) -> None:
        """Reset the connection: discard unsent data and notify the other end."""
        transport = self._transport
        if transport is None or self not in self._state.ends:
            return
        with contextlib.suppress(OSError):  # already reset
            raw = transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        transport.abort()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _pause(self) -> None:
        if self._transport is not None and self._transport.is_reading():
            self._transport.pause_reading()
            self._look_for_reset()

    def _resume(self) -> None:
        self._unwatch()
        if self._transport is not None and not self._ended and not self._transport.is_closing():
            self._transport.resume_reading()

    def _look_for_reset(self) -> None:
        """Poll the kernel: an end that does not read is not notified of a reset."""
        assert self._transport is not None
        raw = self._transport.get_extra_info("socket")
        if raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE:
            self.reset()
            return
        self._watch = asyncio.get_running_loop().call_later(RESET_POLL_S, self._look_for_reset)

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    # --- the client's end ------------------------------------------------------------------------

    def _admit(self) -> None:
        traffic = self._state.traffic
        traffic.clients += 1
        traffic.connections += 1
        self._pause()
        if traffic.clients > MAX_CLIENTS:
            self._turn_away(f"more than {MAX_CLIENTS} clients at the same time")
            return
        task = asyncio.get_running_loop().create_task(self._reach_robot())
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    async def _reach_robot(self) -> None:
        target = self._state.config.target
        try:
            raw = await dial(target)
        except (OSError, TimeoutError, ProxyError) as error:
            self._turn_away(f"{target.host}:{target.port}: {explain(error, target)}")
            return
        if self not in self._state.ends:  # the client has left meanwhile
            raw.close()
            return
        robot = self._other = _End(self._state, self)
        await asyncio.get_running_loop().create_connection(lambda: robot, sock=raw)
        if self not in self._state.ends:
            robot.reset()
            return
        if self._state.traffic.last_error is not None:
            self._state.traffic.last_error = None
            logger.info("%s:%d can be reached again", target.host, target.port)
        self._resume()

    def _turn_away(self, why: str) -> None:
        traffic = self._state.traffic
        traffic.failures += 1
        if traffic.last_error != why:  # one line per change
            traffic.last_error = why
            logger.warning("client rejected: %s", why)
        self.reset()


async def dial(target: LinkConfig) -> socket.socket:
    """Return a TCP connection to `target`, through its proxy if it has one.

    Raises OSError, TimeoutError or python-socks' ProxyError; `connection.explain` covers all of
    them.
    """
    if target.proxy is not None:
        return await parse_proxy(target.proxy).connect(
            target.host, target.port, timeout=target.open_timeout_s
        )
    async with asyncio.timeout(target.open_timeout_s):
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        family, kind, number, _, address = found[0]
        raw = socket.socket(family, kind, number)
        raw.setblocking(False)
        try:
            await loop.sock_connect(raw, address)
        except BaseException:
            raw.close()
            raise
        return raw


def parse_proxy(url: str) -> Proxy:
    """Return the proxy of a URL: socks5h:// (the proxy resolves names), socks5:// or http://.

    Raises SettingsError for anything else.
    """
    kinds = {
        "socks5h": (ProxyType.SOCKS5, True),
        "socks5": (ProxyType.SOCKS5, False),
        "http": (ProxyType.HTTP, True),
    }
    try:
        parts = urllib.parse.urlsplit(read_proxy(url))
    except ValueError as error:
        raise SettingsError(
            f"ROSBRIDGE_PROXY={without_password(url)} is not a supported proxy: it {error}"
        ) from None
    kind, resolves_names = kinds[parts.scheme]
    assert parts.hostname is not None
    assert parts.port is not None
    return Proxy(
        kind, parts.hostname, parts.port, parts.username, parts.password, rdns=resolves_names
    )
