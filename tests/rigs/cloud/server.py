"""The HTTP side that the stand-ins of all three providers share: faults, JSON, one thread each."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Self
from urllib.parse import parse_qs, urlsplit

from cloud.world import World

from crane_x7_remote.cloud.http import Patience
from crane_x7_remote.cloud.provider import Provider

HTML = "<html><body><h1>502 Bad Gateway</h1></body></html>"
SLOW_S = 0.05
PATIENCE = Patience(request_s=2.0, attempts=4, first_pause_s=0.01)
"""Of the clients that tests use."""
LIST_FAULTS = ("list_html", "list_truncated", "list_429", "list_502", "list_slow", "list_reset")


@dataclass
class Reply(Exception):
    """An answer; raised where that ends a request."""

    status: int
    value: Any = None
    text: str | None = None


class Answer(BaseHTTPRequestHandler):
    """One request: routed to `respond`, which each provider's stand-in writes."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet: two wait 40 ms for an acknowledgement
    world: ClassVar[World]
    key: ClassVar[str]

    def respond(self, method: str, path: str, query: dict[str, str], body: Any) -> Reply:
        raise NotImplementedError

    def is_list(self, method: str, path: str, body: Any) -> bool:
        """Whether the request reads a list."""
        raise NotImplementedError

    def faults(self, name: str) -> bool:
        return self.world.faults.hit(name)

    def _handle(self) -> None:
        method = self.command
        parts = urlsplit(self.path)
        length = int(self.headers.get("content-length") or 0)
        raw = self.rfile.read(length).decode()
        if len(raw.encode()) < length:
            raise ConnectionResetError  # the client was killed while it sent
        self.world.requests.append(f"{method} {self.path} {raw}")
        body = json.loads(raw) if raw else None
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        try:
            if self.is_list(method, parts.path, body):
                self._spoil_list(method, parts.path, query, body)
            reply = self.respond(method, parts.path, query, body)
        except Reply as early:
            reply = early
        except ConnectionResetError:
            self.close_connection = True
            return
        self._send(reply)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _handle

    def _spoil_list(self, method: str, path: str, query: dict[str, str], body: Any) -> None:
        fault = next((each for each in LIST_FAULTS if self.faults(each)), None)
        if fault == "list_html":
            raise Reply(200, text=HTML)
        if fault == "list_truncated":
            text = json.dumps(self.respond(method, path, query, body).value)
            raise Reply(200, text=text[: len(text) // 2])
        if fault == "list_429":
            raise Reply(429, {"message": "slow down"})
        if fault == "list_502":
            raise Reply(502, text=HTML)
        if fault == "list_reset":
            raise ConnectionResetError
        if fault == "list_slow":
            time.sleep(SLOW_S)

    def order_fails(self) -> str | None:
        """Return which way an order fails: "made" or "unmade" behind a 502, "lost", "refused"."""
        for name in ("made", "unmade", "lost", "refused"):
            if self.faults(f"create_{name}"):
                return name
        return None

    def _send(self, reply: Reply) -> None:
        text = reply.text if reply.text is not None else json.dumps(reply.value)
        payload = b"" if reply.status == 204 else text.encode()
        self.send_response(reply.status)
        kind = "text/html" if text.startswith("<html") else "application/json"
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(payload)))
        if reply.status == 429:
            self.send_header("retry-after", "0")
        if 300 <= reply.status < 400:
            self.send_header("location", "https://elsewhere.example/")
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *words: object) -> None:
        del format, words


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a client that was killed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class FakeServer:
    """One stand-in on loopback, until the end of the block."""

    def __init__(
        self,
        handler: type[Answer],
        world: World,
        key: str,
        make_client: Callable[[str, str], Provider],
        path: str = "",
    ) -> None:
        """`make_client` takes key and address; `path` ends the provider's address."""
        self.world = world
        self.key = key
        """What clients of `client` send; see `expect` for what the stand-in wants."""
        self._make_client = make_client
        self._path = path
        kind = type("Handler", (handler,), {"world": world, "key": key})
        self._kind: Any = kind
        self._server = _Server(("127.0.0.1", 0), kind)
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """What the setting …_BASE_URL must be."""
        return f"http://127.0.0.1:{self._server.server_port}{self._path}"

    def expect(self, key: str) -> None:
        """From now on refuse every key but this one."""
        self._kind.key = key

    def client(self) -> Provider:
        """Return a client of it, which its user closes."""
        return self._make_client(self.key, self.url)

    def __enter__(self) -> Self:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
