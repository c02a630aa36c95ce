"""A policy server written from openpi's protocol alone: msgpack and websockets, none of our code.

It keeps what it was sent, and answers what it is told: an answer, an error text, silence, or bytes
that are no answer. `PlainPolicyServer` is a context manager; `kill` drops every connection as a
dead machine's kernel does, `restart` serves on the same port again.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""struct linger: closing sends RST, as for a process that was killed with data unread."""


class ErrorText(Exception):
    """Raised by `answer`: the server sends this text and closes with 1011."""


class PlainPolicyServer:
    """`answer(observation)` returns the map to send, or bytes to send as they are."""

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], dict[str, Any] | bytes],
        metadata: dict[str, Any] | bytes | None = None,
        api_key: str | None = None,
        port: int = 0,
    ) -> None:
        """`metadata` None: nothing is sent on connecting, which is against the protocol."""
        self.observations: list[dict[str, Any]] = []
        self.connections = 0
        self.stall_s = 0.0
        """Silence before each answer."""
        self._answer = answer
        self._metadata = metadata
        self._api_key = api_key
        self._links: list[ServerConnection] = []
        self.port = port
        self._server: Server | None = None
        self._thread: threading.Thread | None = None
        self.restart()

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"ws://127.0.0.1:{self.port}"

    def restart(self) -> None:
        """Serve (again) on the same port."""
        self._server = serve(
            self._handle,
            "127.0.0.1",
            self.port,
            compression=None,
            max_size=None,
            process_request=self._check_key,
        )
        self.port = int(self._server.socket.getsockname()[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def kill(self) -> None:
        """Close the port and reset every connection, without a closing handshake."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join(5)
            self._server = None
        for link in self._links:
            with contextlib.suppress(OSError):
                link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                link.socket.shutdown(socket.SHUT_RDWR)
            link.socket.close()
        self._links.clear()

    def _check_key(self, connection: ServerConnection, request: Request) -> Response | None:
        wanted = f"Api-Key {self._api_key}"
        if self._api_key is not None and request.headers.get("Authorization") != wanted:
            return connection.respond(401, "wrong API key\n")
        return None

    def _handle(self, link: ServerConnection) -> None:
        self.connections += 1
        self._links.append(link)
        with contextlib.suppress(ConnectionClosed, OSError):
            if self._metadata is not None:
                link.send(encode(self._metadata))
            for message in link:
                observation = decode(message)
                self.observations.append(observation)
                time.sleep(self.stall_s)
                try:
                    answer = self._answer(observation)
                except ErrorText as error:
                    link.send(str(error))
                    link.close(1011, "Internal server error. Traceback in the previous frame.")
                    return
                link.send(encode(answer))

    def __enter__(self) -> PlainPolicyServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def encode(value: dict[str, Any] | bytes) -> bytes:
    """Return msgpack as openpi's server packs it; bytes stay as they are."""
    return value if isinstance(value, bytes) else msgpack.packb(value, default=_array_map)


def decode(message: bytes) -> Any:
    """Read msgpack as openpi's server does."""
    return msgpack.unpackb(message, object_hook=_map_to_array)


def _array_map(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(type(value).__name__)


def _map_to_array(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return np.ndarray(
            buffer=value[b"data"], dtype=np.dtype(value[b"dtype"]), shape=value[b"shape"]
        )
    if b"__npgeneric__" in value:
        return np.dtype(value[b"dtype"]).type(value[b"data"])
    return value
