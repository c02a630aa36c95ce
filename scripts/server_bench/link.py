"""A slow link as a process: `python -m server_bench.link PORT MBIT_S ROUND_TRIP_MS`.

A relay to PORT that prints its own port. In each direction bytes leave one after another at the
link's rate, and arrive half a round trip later. Nothing is lost, and TCP's windows are those of the
loopback: a real link is not faster.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time

CHUNK = 1460
"""Bytes of one packet of Ethernet."""


async def _carry(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter, rate: float, delay_s: float
) -> None:
    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def deliver() -> None:
        while True:
            due_s, packet = await waiting.get()
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            sink.write(packet)
            if not packet:
                sink.close()
                return

    delivering = asyncio.create_task(deliver())
    free_s = 0.0
    while True:
        packet = await source.read(CHUNK)
        free_s = max(free_s, time.monotonic()) + len(packet) / rate
        waiting.put_nowait((free_s + delay_s, packet))
        if not packet:
            break
    await delivering


async def _run(port: int, rate: float, delay_s: float) -> None:
    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        for each in (writer, far_writer):
            each.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.gather(
            _carry(reader, far_writer, rate, delay_s), _carry(far_reader, writer, rate, delay_s)
        )

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_run(int(sys.argv[1]), float(sys.argv[2]) * 1e6 / 8, float(sys.argv[3]) / 2e3))
