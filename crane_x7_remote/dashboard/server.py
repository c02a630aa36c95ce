"""The HTTP server of the dashboard: page, stream, buttons, videos, /metrics → one ASGI application.

No path of a URL ever becomes a path of a file: pages come from a table that is read at the start,
and videos have names that the run's follower made.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from typing import Final
from urllib.parse import parse_qs

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp

from crane_x7_remote.dashboard import prometheus
from crane_x7_remote.dashboard.board import Board
from crane_x7_remote.dashboard.control import Answer, Control
from crane_x7_remote.dashboard.run_folder import RunFollower
from crane_x7_remote.dashboard.security import COOKIE, Access, Gate, json_object
from crane_x7_remote.dashboard.viewer import Viewers

PAGES: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/login": ("login.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/draw.js": ("draw.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""URL → file of the package's folder `page`, and its type."""
CAN_S: Final = 0.25
"""How often the page learns what a stop would act on."""
STOPS: Final = 4
"""Stops at the same time; the guard has as many places."""
WORDS: Final = 2
"""Instructions and recorder's words at the same time."""
LOGIN_S: Final = 7 * 24 * 3600
CONNECTIONS: Final = 300
GRACE_S: Final = 2
"""How long requests may still take when the server ends."""


@dataclass(frozen=True)
class Parts:
    """What one dashboard has; None: it does not have this part."""

    board: Board
    control: Control | None
    run: RunFollower | None
    access: Access


class _Handlers:
    """The requests of one dashboard."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.viewers = Viewers(parts.board)
        # Their own threads: a stop never waits for instructions or images.
        self._stops = ThreadPoolExecutor(STOPS, thread_name_prefix="stop")
        self._words = ThreadPoolExecutor(WORDS, thread_name_prefix="word")

    async def stop(self, request: Request) -> Response:
        return await self._do(request, self._stops, lambda control, _: control.stop())

    async def resume(self, request: Request) -> Response:
        return await self._do(request, self._stops, lambda control, _: control.resume())

    async def instruction(self, request: Request) -> Response:
        return await self._do(request, self._words, lambda control, body: control.say(body["text"]))

    async def record(self, request: Request) -> Response:
        return await self._do(
            request, self._words, lambda control, body: control.record(body["word"])
        )

    async def _do(
        self,
        request: Request,
        threads: ThreadPoolExecutor,
        act: Callable[[Control, dict[str, object]], Answer],
    ) -> Response:
        control = self._parts.control
        if control is None:
            return _answered(Answer(False, "this dashboard shows a training and no robot", 409))
        try:
            body = json_object(await request.body() or b"{}")
            running = asyncio.get_running_loop().run_in_executor(threads, act, control, body)
            return _answered(await running)
        except KeyError as error:
            return _answered(Answer(False, f"the request has no {error.args[0]}", 400))
        except ValueError as error:
            return _answered(Answer(False, f"the request is not JSON: {error}", 400))

    async def login(self, request: Request) -> Response:
        access = self._parts.access
        fields = parse_qs((await request.body()).decode(errors="replace"), max_num_fields=4)
        if not access.is_right(fields.get("token", [""])[0].strip()):
            await asyncio.sleep(0.5)
            return RedirectResponse("/login?wrong", 303)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            COOKIE, access.cookie, max_age=LOGIN_S, httponly=True, samesite="strict", path="/"
        )
        return answer

    async def metrics(self, request: Request) -> Response:
        del request
        content = prometheus.text(self._parts.board, self.viewers.count)
        return Response(content, headers={"Content-Type": prometheus.CONTENT_TYPE})

    async def video(self, request: Request) -> Response:
        run = self._parts.run
        path = None if run is None else run.video(request.path_params["name"])
        if path is None or not path.is_file():
            return _answered(Answer(False, "this video is not there any more", 404))
        kind = "video/webm" if path.suffix == ".webm" else "video/mp4"
        return FileResponse(path, media_type=kind)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        del app
        task = asyncio.create_task(self._tell_what_can_be_done())
        try:
            yield
        finally:
            task.cancel()
            self._stops.shutdown(wait=False, cancel_futures=True)
            self._words.shutdown(wait=False, cancel_futures=True)

    async def _tell_what_can_be_done(self) -> None:
        control, board = self._parts.control, self._parts.board
        while True:
            means = "training" if control is None else control.stop_means()
            if board.get("stop_means") != means:
                board.put(stop_means=means)
            await asyncio.sleep(CAN_S)


def _answered(answer: Answer) -> JSONResponse:
    return JSONResponse({"ok": answer.ok, "text": answer.text}, answer.status)


def application(parts: Parts) -> ASGIApp:
    """Return the application behind its gate."""
    handlers = _Handlers(parts)
    folder = resources.files("crane_x7_remote.dashboard") / "page"
    routes: list[Route | WebSocketRoute] = [
        Route(url, _page((folder / name).read_bytes(), kind)) for url, (name, kind) in PAGES.items()
    ]
    routes += [
        Route("/stop", handlers.stop, methods=["POST"]),
        Route("/resume", handlers.resume, methods=["POST"]),
        Route("/instruction", handlers.instruction, methods=["POST"]),
        Route("/record", handlers.record, methods=["POST"]),
        Route("/login", handlers.login, methods=["POST"]),
        Route("/metrics", handlers.metrics),
        Route("/videos/{name}", handlers.video),
        WebSocketRoute("/stream", handlers.viewers.serve),
    ]
    return Gate(Starlette(routes=routes, lifespan=handlers.lifespan), parts.access)


def _page(content: bytes, kind: str) -> Callable[[Request], Response]:
    def page(request: Request) -> Response:
        del request
        return Response(content, headers={"Content-Type": kind})

    return page


class Server(uvicorn.Server):
    """A server whose signals are handled by its command."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See uvicorn.Server."""
        yield

    def end(self) -> None:
        """End soon; called on the event loop's thread."""
        self.should_exit = True


def make(parts: Parts) -> Server:
    """Return a server; `serve(sockets=[…])` runs it."""
    return Server(
        uvicorn.Config(
            application(parts),
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=20,
            timeout_graceful_shutdown=GRACE_S,
            ws="websockets-sansio",
            ws_max_size=1024,
            ws_ping_interval=20.0,
            ws_ping_timeout=60.0,
            ws_per_message_deflate=False,
            http="h11",
            lifespan="on",
        )
    )


def listener(host: str, port: int) -> socket.socket:
    """Return a listening socket; raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(128)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made
