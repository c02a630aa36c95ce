"""Real network parts for client tests: a WebSocket server that records, and two proxies."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve


class RecordingServer:
    """A WebSocket server that keeps every operation it gets and sends what it is told.

    `greet` is called with each new connection, before anything is read from it.
    """

    def __init__(
        self, port: int = 0, greet: Callable[[ServerConnection], None] = lambda _: None
    ) -> None:
        self.received: list[dict[str, Any]] = []
        self.connected_s: list[float] = []
        self.links: list[ServerConnection] = []
        self._greet = greet
        self._server: Server = serve(self._handle, "127.0.0.1", port, compression=None)
        self.port = int(self._server.socket.getsockname()[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _handle(self, link: ServerConnection) -> None:
        self.connected_s.append(time.monotonic())
        self.links.append(link)
        with contextlib.suppress(ConnectionClosed):
            self._greet(link)
            for payload in link:
                self.received.append(json.loads(payload))

    def send(self, operation: dict[str, Any] | str | bytes) -> None:
        """Send to everybody connected."""
        payload = json.dumps(operation) if isinstance(operation, dict) else operation
        for link in self.links:
            with contextlib.suppress(ConnectionClosed):
                link.send(payload)

    def of(self, op: str, topic: str | None = None) -> list[dict[str, Any]]:
        """The operations of one kind that have come so far."""
        return [
            operation
            for operation in list(self.received)
            if operation["op"] == op and topic in (None, operation.get("topic"))
        ]

    def __enter__(self) -> RecordingServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        for link in self.links:
            link.socket.close()
        self._thread.join(5)


class Proxy:
    """Base of the two proxies: hands each connection on to where its client asks for.

    Every name leads to 127.0.0.1, as in a tailnet only the proxy knows the names; `asked` keeps
    the requested hosts.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._ends: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._ends.append(near)
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            host, port = self.read_request(near)
            self.asked.append((host, port))
            try:
                far = socket.create_connection(("127.0.0.1", port), timeout=5)
            except OSError:
                self.refuse(near)
                near.close()
                return
            far.settimeout(None)
            self._ends.append(far)
            self.agree(near)
            threading.Thread(target=pump, args=(far, near), daemon=True).start()
            pump(near, far)

    def read_request(self, near: socket.socket) -> tuple[str, int]:
        raise NotImplementedError

    def agree(self, near: socket.socket) -> None:
        raise NotImplementedError

    def refuse(self, near: socket.socket) -> None:
        raise NotImplementedError

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class SocksProxy(Proxy):
    """SOCKS5 without authentication, as tailscaled offers it (RFC 1928)."""

    def read_request(self, near: socket.socket) -> tuple[str, int]:
        _, methods = exactly(near, 2)
        exactly(near, methods)
        near.sendall(b"\x05\x00")
        _, command, _, kind = exactly(near, 4)
        assert command == 1
        if kind == 3:
            host = exactly(near, exactly(near, 1)[0]).decode()
        else:
            host = socket.inet_ntoa(exactly(near, 4))
        return host, struct.unpack("!H", exactly(near, 2))[0]

    def agree(self, near: socket.socket) -> None:
        near.sendall(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00")

    def refuse(self, near: socket.socket) -> None:
        near.sendall(b"\x05\x05\x00\x01\x7f\x00\x00\x01\x00\x00")


class ConnectProxy(Proxy):
    """An HTTP proxy that knows CONNECT alone."""

    def read_request(self, near: socket.socket) -> tuple[str, int]:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += exactly(near, 1)
        method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
        assert method == "CONNECT"
        host, _, port = target.rpartition(":")
        return host, int(port)

    def agree(self, near: socket.socket) -> None:
        near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")

    def refuse(self, near: socket.socket) -> None:
        near.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")


def exactly(source: socket.socket, count: int) -> bytes:
    """Return `count` bytes; EOFError when the other end closes before."""
    content = b""
    while len(content) < count:
        chunk = source.recv(count - len(content))
        if not chunk:
            raise EOFError
        content += chunk
    return content


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Pass bytes on until either end closes."""
    with contextlib.suppress(OSError):
        while chunk := source.recv(65536):
            sink.sendall(chunk)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
