"""What the three programs share: messages of one JSON line, spliced streams, flags as Go's are."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

Message = dict[str, Any]
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
CHUNK_BYTES = 65536


class RefusedError(Exception):
    """The control server's answer is no; the message is what the real one says."""


class Flags(argparse.ArgumentParser):
    """Refuses what it does not know with the words of Go's flag package."""

    def __init__(self, program: str) -> None:
        super().__init__(program, allow_abbrev=False, add_help=False)

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Return what `words` ask for; exits with 2 on an unknown flag."""
        found, unknown = self.parse_known_args(words)
        if unknown:
            name = unknown[0].lstrip("-").partition("=")[0]
            print(f"flag provided but not defined: -{name}", file=sys.stderr)
            sys.exit(2)
        return found


def send(writer: asyncio.StreamWriter, message: Message) -> None:
    writer.write(json.dumps(message).encode() + b"\n")


async def receive(reader: asyncio.StreamReader) -> Message:
    """Return the next message; raises EOFError if there is none."""
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise EOFError("the other end closed the connection")
    message: Message = json.loads(line)
    return message


def handler(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """Return `handle` for a server: a connection that breaks ends that connection alone."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            try:
                await handle(reader, writer)
            except (OSError, EOFError) as error:
                print(f"a connection broke: {error!r}", file=sys.stderr, flush=True)

    return serve


async def splice(one: Stream, other: Stream) -> None:
    """Pass bytes both ways until either way ends, which ends both, as with the real ones."""
    pumps = [asyncio.create_task(_pump(a[0], b[1])) for a, b in ((one, other), (other, one))]
    try:
        done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        if any(pump.exception() for pump in done):
            for _, writer in (one, other):
                writer.transport.abort()
    finally:
        for pump, (_, writer) in zip(pumps, (one, other), strict=True):
            pump.cancel()
            writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.set_write_buffer_limits(high=CHUNK_BYTES)
    while chunk := await reader.read(CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()


async def wait_for_end() -> None:
    """Return once we are told to end."""
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    await told.wait()
