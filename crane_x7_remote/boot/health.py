"""`/healthz` over HTTP: on a Unix socket for `status`, on TS_LOCAL_ADDR_PORT for other programs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from crane_x7_remote.boot.status_board import StatusBoard
from crane_x7_remote.errors import SettingsError

REQUEST_TIMEOUT_S = 5.0


@asynccontextmanager
async def served(
    board: StatusBoard, path: Path, address: tuple[str, int] | None
) -> AsyncIterator[None]:
    """Answer from `board` while the context lasts; `address` None: only on the Unix socket.

    Status 200 while every part in use is up, else 503. Raises SettingsError for a port in use.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(TimeoutError, ConnectionError, ValueError):
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                request = await reader.readline()
                while (await reader.readline()).strip():
                    pass
                writer.write(_response(request, board))
                await writer.drain()
        writer.close()

    path.unlink(missing_ok=True)
    servers = [await asyncio.start_unix_server(answer, path)]
    os.chmod(path, 0o666)  # the answer holds no secret, and user vla may read it
    try:
        if address is not None:
            servers.append(await _listen(answer, address))
        yield
    finally:
        for server in servers:
            server.close()
        path.unlink(missing_ok=True)


async def _listen(answer: object, address: tuple[str, int]) -> asyncio.Server:
    host, port = address
    try:
        return await asyncio.start_server(answer, host or None, port)  # type: ignore[arg-type]
    except OSError as error:
        raise SettingsError(
            f"TS_LOCAL_ADDR_PORT={host}:{port}: cannot listen there ({error.strerror}); choose"
            " another port, or set TS_ENABLE_HEALTH_CHECK=false"
        ) from error


def _response(request: bytes, board: StatusBoard) -> bytes:
    words = request.split()
    if len(words) < 2 or words[0] != b"GET" or words[1] not in (b"/", b"/healthz"):
        status, body = "404 Not Found", '{"error": "only GET /healthz is served"}'
    else:
        status = "200 OK" if board.healthy else "503 Service Unavailable"
        body = json.dumps(board.as_json())
    content = (body + "\n").encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode() + content
