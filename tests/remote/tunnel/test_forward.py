"""The port of the loopback that leads to the robot: real sockets, a SOCKS5 proxy in between."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from loop_rig import FaultyRobot, RunningLoop
from socks_rig import SocksProxy
from websockets.asyncio.client import connect

from crane_x7_remote.errors import ForwardRefusedError, PeerUnreachableError, SettingsError
from crane_x7_remote.rosbridge.connection import LinkConfig
from crane_x7_remote.tunnel.forward import MAX_CLIENTS, ForwardConfig, Forwarder, parse_proxy
from crane_x7_remote.tunnel.probe import probe

ROBOT = "robot.tailnet.test"
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def until(holds: Callable[[], object], what: str, timeout_s: float = 10.0) -> None:
    """Fail the test unless `holds` within `timeout_s`."""
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    while not holds():
        assert asyncio.get_running_loop().time() < deadline_s, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.01)


class FarEnd:
    """A TCP server that hands its connections to the test."""

    def __init__(self) -> None:
        self.connections: asyncio.Queue[Stream] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self.connections.put_nowait((reader, writer))

    async def __aenter__(self) -> FarEnd:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)

    async def next(self) -> Stream:
        return await asyncio.wait_for(self.connections.get(), 10)


@contextlib.asynccontextmanager
async def forwarding(
    port: int, proxy: str | None = None, **changes: Any
) -> AsyncIterator[Forwarder]:
    host = "127.0.0.1" if proxy is None else ROBOT
    forwarder = Forwarder(ForwardConfig(LinkConfig(host, port, proxy, **changes)))
    await forwarder.start()
    try:
        yield forwarder
    finally:
        await forwarder.stop()


@pytest.fixture
async def far() -> AsyncIterator[FarEnd]:
    async with FarEnd() as far:
        yield far


@pytest.fixture
async def forwarder(far: FarEnd) -> AsyncIterator[Forwarder]:
    async with SocksProxy({ROBOT: "127.0.0.1"}) as proxy, forwarding(far.port, proxy.url) as one:
        yield one


async def pair(forwarder: Forwarder, far: FarEnd) -> tuple[Stream, Stream]:
    """A client through the forwarder, and its end at the robot."""
    near = await asyncio.open_connection("127.0.0.1", forwarder.port)
    return near, await far.next()


async def test_bytes_arrive_whole_in_both_directions(forwarder: Forwarder, far: FarEnd) -> None:
    (near_in, near_out), (far_in, far_out) = await pair(forwarder, far)
    sent = random.Random(0).randbytes(5_000_000)

    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await writer.drain()
        writer.write_eof()

    _, _, there, back = await asyncio.gather(
        send(near_out), send(far_out), far_in.read(), near_in.read()
    )
    assert hashlib.sha256(there).digest() == hashlib.sha256(back).digest()
    assert there == sent
    await until(lambda: forwarder.traffic.clients == 0, "both ends closed")
    assert forwarder.traffic.bytes_out == forwarder.traffic.bytes_in == len(sent)
    near_out.close()


async def test_names_are_left_to_the_proxy(far: FarEnd) -> None:
    async with SocksProxy({ROBOT: "127.0.0.1"}) as proxy, forwarding(far.port, proxy.url) as one:
        _, writer = await asyncio.open_connection("127.0.0.1", one.port)
        await far.next()
        writer.close()
    assert proxy.asked == [ROBOT]


async def test_an_end_of_stream_leaves_the_other_direction_open(
    forwarder: Forwarder, far: FarEnd
) -> None:
    (near_in, near_out), (far_in, far_out) = await pair(forwarder, far)
    near_out.write(b"question")
    near_out.write_eof()
    assert await far_in.read() == b"question"
    far_out.write(b"answer")
    await far_out.drain()
    assert await near_in.readexactly(6) == b"answer"
    far_out.write_eof()
    assert await near_in.read() == b""
    near_out.close()


async def test_who_does_not_read_is_not_written_for(far: FarEnd) -> None:
    """Without a proxy in between, so that what is on its way is ours and the kernel's alone."""
    async with forwarding(far.port) as forwarder:
        near = socket.create_connection(("127.0.0.1", forwarder.port))
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        near.setblocking(False)
        far_in, _ = await far.next()
        far_in._transport.pause_reading()  # type: ignore[attr-defined]
        far_in._transport.get_extra_info("socket").setsockopt(  # type: ignore[attr-defined]
            socket.SOL_SOCKET, socket.SO_RCVBUF, 65536
        )
        sent, idle = 0, 0
        while idle < 20:  # until nothing was taken for 0.4 s
            try:
                sent += near.send(bytes(65536))
                idle = 0
            except BlockingIOError:
                idle += 1
            await asyncio.sleep(0.02)
            assert sent < 20_000_000, "it takes in without end what nobody reads"
        assert forwarder.traffic.bytes_out < 4_000_000
        far_in._transport.resume_reading()  # type: ignore[attr-defined]
        near.setblocking(True)
        await asyncio.to_thread(near.shutdown, socket.SHUT_WR)
        assert len(await far_in.read()) == sent
        near.close()


async def test_a_break_throws_away_what_is_under_way(far: FarEnd) -> None:
    """As the loop does with a link that went dark: it must not arrive once the link is back."""
    async with forwarding(far.port) as forwarder:
        near = socket.create_connection(("127.0.0.1", forwarder.port))
        near.setblocking(False)
        far_in, _ = await far.next()
        far_in._transport.pause_reading()  # type: ignore[attr-defined]
        sent, idle = 0, 0
        while idle < 20:
            try:
                sent += near.send(bytes(65536))
                idle = 0
            except BlockingIOError:
                idle += 1
            await asyncio.sleep(0.02)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        near.close()
        await until(lambda: forwarder.traffic.clients == 0, "the break is noticed while blocked")
        far_in._transport.resume_reading()  # type: ignore[attr-defined]
        with pytest.raises(ConnectionResetError):
            await far_in.read()


async def test_a_break_at_the_robot_reaches_the_client(far: FarEnd) -> None:
    async with forwarding(far.port) as forwarder:
        (near_in, near_out), (_, far_out) = await pair(forwarder, far)
        raw = far_out.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far_out.transport.abort()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(near_in.read(), 10)
        await until(lambda: forwarder.traffic.clients == 0, "the client's end is closed")
        near_out.close()


async def test_a_client_is_turned_away_while_the_robot_is_gone_and_served_after() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = int(reserved.getsockname()[1])
    async with SocksProxy({ROBOT: "127.0.0.1"}) as proxy, forwarding(port, proxy.url) as forwarder:
        reader, writer = await asyncio.open_connection("127.0.0.1", forwarder.port)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        assert forwarder.traffic.failures == 1
        assert ROBOT in str(forwarder.traffic.last_error)
        server = await asyncio.start_server(lambda _, out: out.close(), "127.0.0.1", port)
        reader, writer = await asyncio.open_connection("127.0.0.1", forwarder.port)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        assert forwarder.traffic.last_error is None
        writer.close()
        server.close()


async def test_one_port_is_opened_and_on_the_loopback_alone(forwarder: Forwarder) -> None:
    assert forwarder._server is not None
    addresses = [each.getsockname()[0] for each in forwarder._server.sockets]
    assert addresses == ["127.0.0.1"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", forwarder.port), timeout=5)


async def test_a_port_that_is_taken_is_said(forwarder: Forwarder) -> None:
    second = Forwarder(ForwardConfig(LinkConfig(ROBOT), forwarder.port))
    with pytest.raises(ForwardRefusedError, match=f"127.0.0.1:{forwarder.port}.*--listen-port"):
        await second.start()
    await second.stop()


async def test_the_number_of_clients_is_bounded(far: FarEnd) -> None:
    async with forwarding(far.port) as forwarder:
        streams = [
            await asyncio.open_connection("127.0.0.1", forwarder.port)
            for _ in range(MAX_CLIENTS + 3)
        ]
        await until(lambda: forwarder.traffic.failures == 3, "three are turned away")
        assert forwarder.traffic.clients == MAX_CLIENTS
        for _, writer in streams:
            writer.close()


@pytest.mark.parametrize("url", ["ftp://127.0.0.1:1", "socks5h://127.0.0.1", "1055", "socks5://:1"])
def test_a_proxy_that_cannot_be_one_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="ROSBRIDGE_PROXY"):
        parse_proxy(url)


# --- rosbridge behind it -------------------------------------------------------------------------


async def test_the_probe_wants_a_websocket_server_not_just_a_port(far: FarEnd) -> None:
    async def hang_up() -> None:
        _, writer = await far.next()
        writer.close()

    hanging_up = asyncio.create_task(hang_up())
    async with forwarding(far.port) as forwarder:
        with pytest.raises(PeerUnreachableError, match="not a WebSocket server"):
            await probe(LinkConfig("127.0.0.1", forwarder.port))
    await hanging_up


async def test_the_probe_names_what_the_proxy_could_not_reach() -> None:
    async with SocksProxy({}) as proxy:
        with pytest.raises(PeerUnreachableError, match="ROSBRIDGE_PROXY"):
            await probe(LinkConfig("robot-old", 9090, proxy.url))


async def test_the_loop_drives_through_proxy_and_forwarder_as_if_the_robot_were_here() -> None:
    def drive(port: int) -> None:
        with RunningLoop(port) as running:
            running.wait_driving()

    with FaultyRobot() as robot:
        async with (
            SocksProxy({ROBOT: "127.0.0.1"}) as proxy,
            forwarding(robot.port, proxy.url) as forwarder,
        ):
            await probe(LinkConfig("127.0.0.1", forwarder.port))
            await asyncio.to_thread(drive, forwarder.port)
            async with connect(f"ws://127.0.0.1:{forwarder.port}") as another:
                await another.ping()
        robot.assert_nothing_bad_arrived()
