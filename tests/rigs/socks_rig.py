"""A SOCKS5 proxy of a few lines, for tests of connections through one; resolves its own names."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from types import TracebackType
from typing import Self

GRANTED, HOST_UNREACHABLE, REFUSED = 0, 4, 5
NO_AUTHENTICATION = 0
BY_IPV4, BY_NAME = 1, 3


class SocksProxy:
    """Serves within `async with`; `names` maps the hosts that it knows to addresses."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self.asked: list[str] = []
        """Requested hosts, as they were written."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        self._tasks: set[asyncio.Task[None]] = set()
        return self

    @property
    def url(self) -> str:
        return f"socks5h://127.0.0.1:{self.port}"

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            _, methods = await reader.readexactly(2)
            await reader.readexactly(methods)
            writer.write(bytes([5, NO_AUTHENTICATION]))
            host, port = await self._read_request(reader)
            self.asked.append(host)
            address = self._names.get(host)
            try:
                if address is None:
                    raise OSError("unknown name")
                far = await asyncio.open_connection(address, port)
            except OSError as error:
                code = REFUSED if isinstance(error, ConnectionRefusedError) else HOST_UNREACHABLE
                writer.write(bytes([5, code, 0, BY_IPV4, *bytes(6)]))
                return
            writer.write(bytes([5, GRANTED, 0, BY_IPV4, *bytes(6)]))
            with contextlib.closing(far[1]):
                await asyncio.gather(_pump(reader, far[1]), _pump(far[0], writer))

    async def _read_request(self, reader: asyncio.StreamReader) -> tuple[str, int]:
        _, _, _, kind = await reader.readexactly(4)
        if kind == BY_NAME:
            (length,) = await reader.readexactly(1)
            host = (await reader.readexactly(length)).decode()
        else:
            host = ".".join(str(byte) for byte in await reader.readexactly(4))
        return host, int.from_bytes(await reader.readexactly(2), "big")


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.set_write_buffer_limits(high=65536)
    try:
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
        writer.write_eof()
    except ConnectionError:
        writer.transport.abort()
        raise
