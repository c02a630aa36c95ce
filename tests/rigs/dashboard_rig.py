"""A dashboard's real server on its own thread, and browsers of it that are only sockets."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from crane_x7_remote.dashboard import server
from crane_x7_remote.dashboard.board import Board
from crane_x7_remote.dashboard.control import Control
from crane_x7_remote.dashboard.run_folder import RunFollower
from crane_x7_remote.dashboard.security import Access
from crane_x7_remote.dashboard.server import Parts


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class StreamMessage:
    """One message of /stream."""

    head: dict[str, Any]
    image: bytes


def request(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
    """Send one request exactly as written; underscores of `headers` are dashes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=15)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, found, answer.read())
    finally:
        connection.close()


def post(port: int, path: str, values: object, **headers: str) -> Reply:
    body = json.dumps(values).encode()
    return request(port, "POST", path, body, Content_Type="application/json", **headers)


def stream(port: int, **more: Any) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{port}/stream", proxy=None, compression=None, **more)


def parse(message: str | bytes) -> StreamMessage:
    assert isinstance(message, bytes)
    length = int.from_bytes(message[:4], "big")
    return StreamMessage(json.loads(message[4 : 4 + length]), message[4 + length :])


def receive(link: ClientConnection, timeout_s: float = 10.0) -> StreamMessage:
    """Return the next message, and confirm it."""
    message = parse(link.recv(timeout=timeout_s))
    link.send("")
    return message


@contextlib.contextmanager
def viewers(port: int, count: int) -> Iterator[None]:
    """Watch the page as `count` further browsers do, on threads."""
    ended = threading.Event()

    def watch() -> None:
        with contextlib.suppress(OSError, TimeoutError, WebSocketException), stream(port) as link:
            while not ended.is_set():
                receive(link)

    threads = [threading.Thread(target=watch, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(15)


class RunningDashboard:
    """A context manager."""

    def __init__(
        self,
        board: Board | None = None,
        control: Control | None = None,
        run: RunFollower | None = None,
        token: str | None = None,
    ) -> None:
        self.board = board or Board()
        self._listener = server.listener("127.0.0.1", 0)
        self.port = int(self._listener.getsockname()[1])
        self._server = server.make(Parts(self.board, control, run, Access(token)))
        self._thread = threading.Thread(target=self._run, name="dashboard")

    def _run(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._listener]))

    def get(self, path: str, **headers: str) -> Reply:
        return request(self.port, "GET", path, **headers)

    def post(self, path: str, values: object, **headers: str) -> Reply:
        return post(self.port, path, values, **headers)

    def __enter__(self) -> RunningDashboard:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.end()
        self._thread.join(10)
        self._listener.close()
        assert not self._thread.is_alive()
