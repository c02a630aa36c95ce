"""The server of openpi's protocol. Observations of WebSocket clients → a function → their answers.

On connecting, a client gets the metadata; then each binary message is an observation, answered by
one binary message with `actions`, `server_timing` and whatever else the function returns. An error
is a text message, and the connection closes with 1011. `/healthz` answers over HTTP.

Needs the standard library, numpy, msgpack and websockets alone: it also runs in LeRobot's
environment. Source: openpi's src/openpi/serving/websocket_policy_server.py. Departures: the API key
is checked, the observations of several clients form batches, browsers are refused, sizes are
limited.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import http
import itertools
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

from websockets.asyncio.server import Server, ServerConnection
from websockets.asyncio.server import serve as listen
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response
from websockets.protocol import State

from crane_x7_remote.addresses import is_loopback
from crane_x7_remote.errors import RemoteError, ServeError
from crane_x7_remote.policy_server import wire
from crane_x7_remote.policy_server.batches import (
    Answer,
    BatchThread,
    Observation,
    WithdrawnError,
)
from crane_x7_remote.policy_server.msgpack_bounds import Limits
from crane_x7_remote.system import signals
from crane_x7_remote.system.memory import keep_freed_memory

logger = logging.getLogger(__name__)
handshakes = logging.getLogger(__name__ + ".handshakes")
handshakes.setLevel(logging.CRITICAL)  # A port check that sends nothing is not an error.

CLIENT_KEY: Final = "server/client"
"""Key that the server adds to each observation: the number of the client's connection."""
HEALTH_PATH: Final = "/healthz"
CLOSE_TIMEOUT_S: Final = 1.0
SWITCH_INTERVAL_S: Final = 0.0005
"""How long the policy's thread may keep the interpreter while a client waits; Python's default is
5 ms."""
REQUEST_LIMITS: Final = Limits(max_bytes=32 * 1024 * 1024)
AnswerFunction = Callable[[list[Observation]], Sequence[Answer]]


def _nothing(number: int) -> None:
    del number


@dataclass(frozen=True)
class ServerConfig:
    """Where and how the server listens."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 picks a free port."""
    api_key: str | None = field(default=None, repr=False)
    """Clients send it as `Authorization: Api-Key …`; required unless `host` is this machine's."""
    max_batch: int = 8
    """Most observations in one call of the function."""
    max_clients: int = 16
    """Further clients get 503."""
    limits: Limits = REQUEST_LIMITS
    """Of a request; eleven uncompressed images of 1280×720."""


class PolicyServer:
    """Serves one function to many clients. Call every method on its event loop."""

    def __init__(
        self,
        answer: AnswerFunction,
        metadata: Mapping[str, Any],
        config: ServerConfig,
        on_left: Callable[[int], None] = _nothing,
    ) -> None:
        """`on_left` gets the number of each client that has left, on the event loop.

        Raises ServeError for an address that others can reach without an API key, and WireError for
        metadata that cannot be sent.
        """
        self.check(config)
        self._answer = answer
        self._greeting = wire.pack(dict(metadata))
        self._config = config
        self._on_left = on_left
        self._numbers = itertools.count(1)
        self._clients: set[int] = set()
        self._server: Server | None = None
        self._batches: BatchThread | None = None

    @staticmethod
    def check(config: ServerConfig) -> None:
        """Raise ServeError for an address that others can reach without an API key."""
        if config.api_key is None and not is_loopback(config.host):
            raise ServeError(
                f"{config.host} can be reached from other machines, and there is no API key: set"
                " POLICY_API_KEY, or listen on 127.0.0.1"
            )

    async def start(self) -> None:
        """Listen; raises ServeError if the address is not available."""
        try:
            self._server = await listen(
                self._serve_client,
                self._config.host,
                self._config.port,
                compression=None,
                logger=handshakes,
                origins=[None],  # a web page in a browser could otherwise reach a local server
                process_request=self._before_handshake,
                max_size=self._config.limits.max_bytes,
                max_queue=1,
                close_timeout=CLOSE_TIMEOUT_S,
            )
        except OSError as error:
            raise ServeError(
                f"cannot listen on {self._config.host} port {self._config.port}:"
                f" {error.strerror or error}; choose another with --port"
            ) from error
        self._batches = BatchThread(self._answer, self._config.max_batch)

    async def stop(self) -> None:
        """Stop listening and close all connections; a running batch is not waited for."""
        if self._batches is not None:
            self._batches.close()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    @property
    def port(self) -> int:
        """The port in use, also if the configured one is 0."""
        if self._server is None:
            raise RuntimeError("the server is not started, so it has no port yet")
        return int(self._server.sockets[0].getsockname()[1])

    def _before_handshake(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == HEALTH_PATH:
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self._config.api_key is not None:
            given = request.headers.get_all("Authorization")
            wanted = f"Api-Key {self._config.api_key}"
            if len(given) != 1 or not hmac.compare_digest(given[0].encode(), wanted.encode()):
                what = "a wrong API key" if given else "no API key"
                logger.warning("refused %s: %s", _address(connection), what)
                return connection.respond(
                    http.HTTPStatus.UNAUTHORIZED,
                    f"{what}; send the header Authorization: Api-Key KEY (POLICY_API_KEY)\n",
                )
        if len(self._clients) >= self._config.max_clients:
            return connection.respond(
                http.HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self._config.max_clients} clients are already connected\n",
            )
        return None

    async def _serve_client(self, connection: ServerConnection) -> None:
        client = next(self._numbers)
        self._clients.add(client)
        logger.info("client %d connected from %s", client, _address(connection))
        try:
            await connection.send(self._greeting)
            await self._answer_requests(client, connection)
        except (ConnectionClosed, WithdrawnError):
            pass
        except Exception as error:
            expected = isinstance(error, RemoteError)
            logger.warning("client %d: %s", client, error, exc_info=not expected)
            text = f"{type(error).__name__}: {error}" if expected else traceback.format_exc()
            with contextlib.suppress(ConnectionClosed):
                await connection.send(text)
                await connection.close(CloseCode.INTERNAL_ERROR, "see the text message before")
        finally:
            self._clients.discard(client)
            self._on_left(client)
            logger.info("client %d left", client)

    async def _answer_requests(self, client: int, connection: ServerConnection) -> None:
        assert self._batches is not None
        last_total_ms = None
        async for message in connection:
            began_s = time.monotonic()
            observation = self._read(message) | {CLIENT_KEY: client}
            reply = await self._batches.submit(observation, lambda: connection.state is State.OPEN)
            timing = {
                "infer_ms": reply.infer_ms,
                "wait_ms": reply.wait_ms,
                "batch": reply.batch,
            }
            if last_total_ms is not None:
                timing["prev_total_ms"] = last_total_ms
            await connection.send(wire.pack({**reply.answer, "server_timing": timing}))
            last_total_ms = (time.monotonic() - began_s) * 1e3

    def _read(self, message: str | bytes) -> Observation:
        if isinstance(message, str):
            raise wire.WireError(f"got the text {message[:60]!r}, expected a binary message")
        observation = wire.unpack(message, self._config.limits)
        if not isinstance(observation, dict) or not all(isinstance(k, str) for k in observation):
            raise wire.WireError(
                f"an observation is a {type(observation).__name__}, expected a map with texts as"
                " keys"
            )
        return observation


def serve(
    answer: AnswerFunction,
    metadata: Mapping[str, Any],
    config: ServerConfig,
    ready: Callable[[int], None] = _nothing,
    on_left: Callable[[int], None] = _nothing,
) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP; call it on the main thread.

    `answer` gets the observations of one batch, on one thread, and returns a map for each; one that
    raises is called again with each observation alone. `ready` gets the port. Raises ServeError.
    """

    async def run() -> None:
        server = PolicyServer(answer, metadata, config, on_left)
        ended = asyncio.Event()
        for number in signals.ending():
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        await server.start()
        try:
            ready(server.port)
            await ended.wait()
            logger.info("stopping on a signal")
        finally:
            await server.stop()

    keep_freed_memory()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    asyncio.run(run())


@contextlib.contextmanager
def running(
    answer: AnswerFunction,
    metadata: Mapping[str, Any],
    config: ServerConfig,
    on_left: Callable[[int], None] = _nothing,
) -> Iterator[str]:
    """Serve on a thread of this process; yields the URL. Raises ServeError."""
    loop = asyncio.new_event_loop()
    url: Future[str] = Future()
    ended = asyncio.Event()

    async def run() -> None:
        server = PolicyServer(answer, metadata, config, on_left)
        await server.start()
        url.set_result(f"ws://{config.host}:{server.port}")
        try:
            await ended.wait()
        finally:
            await server.stop()

    def run_loop() -> None:
        try:
            loop.run_until_complete(run())
        except Exception as error:
            url.set_exception(error)

    thread = threading.Thread(target=run_loop, name="policy-server")
    thread.start()
    try:
        yield url.result()
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()


def _address(connection: ServerConnection) -> str:
    return ":".join(map(str, (connection.remote_address or ())[:2]))
