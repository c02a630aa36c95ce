"""What the guard must survive while somebody drives: floods, bombs, crowds, slow clients."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import cbor2
import numpy as np
import pytest
from guard_rig import (
    ARM,
    CAMERA,
    JOINTS,
    STATE_TOPIC,
    STOP_TOPIC,
    Caller,
    GuardProcess,
    RunningGuard,
    command,
    first_line,
    trajectory,
)
from links import RecordingServer
from loop_rig import FaultyRobot, wait_until
from places import RIGS
from websockets.exceptions import ConnectionClosed, InvalidStatus

from crane_x7_remote.guard.clients import TO_CLIENT
from crane_x7_remote.guard.limits import MOST_FRAMES_AT_ONCE
from crane_x7_remote.rosbridge import messages

ANSWER_S = 0.5
"""How long a stop may take while others misbehave, on a machine that others use as well."""


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer() as server:
        yield server


@pytest.fixture
def guard(server: RecordingServer) -> Iterator[RunningGuard]:
    with RunningGuard(server.port) as guard:
        wait_until(lambda: server.of("subscribe", STOP_TOPIC), 5, "rosbridge reached")
        yield guard


@pytest.fixture
def process(server: RecordingServer) -> Iterator[GuardProcess]:
    """The guard in a separate process, to measure its time and memory."""
    with GuardProcess(server.port) as process:
        wait_until(lambda: server.of("subscribe", JOINTS), 10, "rosbridge reached")
        yield process


@contextlib.contextmanager
def meanwhile(job: Callable[[threading.Event], None], count: int = 1) -> Iterator[None]:
    """Run `job` on threads until the block is left."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError, ConnectionClosed, InvalidStatus, TimeoutError):
                job(over)
            time.sleep(0.02)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(20)


def slowest_stop_s(guard: GuardProcess, driver: Caller, seconds: float = 1.0) -> float:
    """Drive, stop and resume again and again; return the longest time until a stop was answered."""
    slowest_s, until_s = 0.0, time.monotonic() + seconds
    with guard.connect("/stop") as operator:
        while time.monotonic() < until_s:
            driver.publish(ARM, trajectory())
            asked_s = time.monotonic()
            operator.publish(STOP_TOPIC, {"data": True})
            operator.state(lambda state: state["stopped"])
            slowest_s = max(slowest_s, time.monotonic() - asked_s)
            operator.publish(STOP_TOPIC, {"data": False})
            operator.state(lambda state: state["stopped"] is None)
            time.sleep(0.02)
    return slowest_s


# --- floods --------------------------------------------------------------------------------------


def frames(payload: bytes, opcode: int, count: int) -> bytes:
    """Masked client frames, ready to be thrown at a socket."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + struct.pack("!H", size)
    return (bytes([0x80 | opcode]) + length + bytes(4) + payload) * count


FLOODS = {
    "refused operations": (json.dumps({"op": "call_service", "service": "/x"}).encode(), 1),
    "no JSON": (b"{", 1),
    "empty": (b"", 1),
    "binary": (b"\x00", 2),
    "pings": (b"", 9),
    "pongs": (b"", 10),
    "trajectories": (json.dumps({"op": "publish", "topic": ARM, "msg": trajectory()}).encode(), 1),
    "stops": (
        json.dumps({"op": "publish", "topic": "/vla/stop", "msg": {"data": 0}}).encode(),
        1,
    ),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_is_cut_off_and_the_driver_does_not_notice(
    process: GuardProcess, server: RecordingServer, kind: str
) -> None:
    guard = process
    payload, opcode = FLOODS[kind]
    flood = frames(payload, opcode, 5000)

    def attack(over: threading.Event) -> None:
        with guard.connect() as client:
            client.link.socket.settimeout(0.5)
            while not over.is_set():
                client.link.socket.sendall(flood)

    with guard.connect() as driver:
        driver.publish(ARM, trajectory())  # the core's first driver
        wait_until(lambda: server.of("publish", ARM), 5, "driving")
        with meanwhile(attack):
            assert slowest_stop_s(guard, driver) < ANSWER_S
        wait_until(lambda: guard.state()["gate"]["turned_away"].get("flood"), 5, "cut off")
        driver.link.ping().wait(5)


def test_a_flooding_client_is_told_why(guard: RunningGuard) -> None:
    with guard.connect() as client:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(20 * int(MOST_FRAMES_AT_ONCE)):
                client.send('{"op":"set_level"}')
        closed = client.end()
        assert closed.rcvd is not None
        assert closed.rcvd.code == 1008
        assert "messages per second" in closed.rcvd.reason


def test_what_a_stalled_link_held_back_is_no_flood(guard: RunningGuard) -> None:
    with guard.connect() as client:
        for _ in range(120):
            client.publish(ARM, trajectory())
        wait_until(lambda: len(guard.core.of("take_trajectory")) == 120, 5, "all taken")


# --- bombs ---------------------------------------------------------------------------------------


def nested(depth: int) -> str:
    return f'{{"op":"publish","topic":"{ARM}","msg":' + '{"a":[' * depth + "]}" * depth + "}"


def cbor_bomb() -> bytes:
    """A few bytes that say to be an array of 2^60 elements, and one of many shared references."""
    return b"\x9b" + struct.pack("!Q", 2**60) + cbor2.dumps(["x" * 1000] * 200)


BOMBS: dict[str, str | bytes] = {
    "deep": nested(500),
    "very deep": "[" * 200_000,
    "wide": json.dumps({"op": "publish", "topic": ARM, "msg": {"points": [[]] * 60_000}}),
    "numbers": json.dumps({"op": "publish", "topic": ARM, "msg": {"points": [0] * 80_000}}),
    "long number": '{"op":"publish","topic":"/x","msg":' + "9" * 200_000 + "}",
    "cbor": cbor_bomb(),
    "many keys": json.dumps({"op": "x", **{str(index): 0 for index in range(15_000)}}),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_and_costs_nobody_time(process: GuardProcess, name: str) -> None:
    guard = process

    def attack(over: threading.Event) -> None:
        with guard.connect() as client:
            for _ in range(5):
                client.send(BOMBS[name])
                if over.wait(0.02):
                    return

    with guard.connect() as driver:
        with meanwhile(attack):
            assert slowest_stop_s(guard, driver) < ANSWER_S
        assert sum(guard.state()["gate"]["refused"].values()) >= 1
        assert guard.state()["gate"]["faults"] == 0


def test_a_huge_message_ends_its_connection_before_it_is_read(guard: RunningGuard) -> None:
    with guard.connect() as client, guard.connect() as other:
        head = b"\x81\xff" + struct.pack("!Q", 2**40) + bytes(4)
        client.link.socket.sendall(head + b"x" * 1000)
        with pytest.raises(ConnectionClosed) as caught:
            client.payload()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009
        other.publish(ARM, trajectory())
        wait_until(lambda: guard.core.of("take_trajectory"), 5, "others drive on")


def test_a_message_of_endless_fragments_takes_no_memory(process: GuardProcess) -> None:
    before = process.memory_bytes
    with process.connect() as client:
        with contextlib.suppress(OSError):
            client.link.socket.sendall(b"\x01\x80" + bytes(4))
            for _ in range(2000):
                client.link.socket.sendall((b"\x00\x80" + bytes(4)) * 1000)
        client.end()
    assert process.memory_bytes - before < 20e6


# --- crowds --------------------------------------------------------------------------------------


def test_500_connections_are_turned_away_and_stopping_still_works(
    server: RecordingServer, guard: RunningGuard
) -> None:
    with guard.connect() as driver:
        request = (
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        crowd = []
        for _ in range(500):
            one = socket.create_connection(("127.0.0.1", guard.port), timeout=5)
            one.sendall(request)
            crowd.append(one)
        with guard.connect("/stop") as operator:
            operator.publish(STOP_TOPIC, {"data": True})
            assert operator.state()["stopped"]
            operator.publish(STOP_TOPIC, {"data": False})
            assert operator.state()["stopped"] is None
            assert len(guard.state()["gate"]["clients"]) <= 9
        statuses = [one.recv(100).split(b" ")[1] for one in crowd]
        assert statuses[:7] == [b"101"] * 7
        assert set(statuses[7:]) <= {b"101", b"503"}, "101: a silent one was closed before"
        assert statuses.count(b"503") > 400
        driver.publish(ARM, trajectory())
        wait_until(lambda: server.of("publish", ARM), 5, "driving")
        for one in crowd:
            one.close()
        wait_until(lambda: len(guard.state()["gate"]["clients"]) == 1, 10, "all gone")
        guard.connect().close()


def test_connections_that_never_ask_for_anything_are_dropped(process: GuardProcess) -> None:
    """A slow loris: it opens connections and sends its requests a byte at a time."""
    guard = process
    crowd = [socket.create_connection(("127.0.0.1", guard.port), timeout=10) for _ in range(400)]
    for one in crowd:
        with contextlib.suppress(OSError):
            one.sendall(b"G")
    with guard.connect() as driver:
        assert slowest_stop_s(guard, driver) < ANSWER_S
    assert guard.state()["gate"]["turned_away"]["too many handshakes"] >= 1
    opened_s = time.monotonic()
    for one in crowd:
        with contextlib.suppress(OSError):
            assert one.recv(1000) == b""
        one.close()
    assert time.monotonic() - opened_s < 6


# --- clients that do not read --------------------------------------------------------------------


def test_a_client_that_reads_slowly_loses_the_oldest_and_holds_nobody_up(
    server: RecordingServer, guard: RunningGuard
) -> None:
    with guard.connect() as slow, guard.connect() as driver:
        slow.subscribe(CAMERA, "sensor_msgs/CompressedImage", "cbor")
        wait_until(lambda: server.of("subscribe", CAMERA), 5, "subscribed")
        picture = bytes(100_000)
        sent = 0
        for number in range(150):
            for link in server.links[1:]:
                link.send(struct.pack("!I", number) + picture)
            sent += 1
            driver.payload()
        numbers = []
        until_s = time.monotonic() + 10
        while not numbers or numbers[-1] != sent - 1:
            assert time.monotonic() < until_s
            payload = slow.payload()
            assert isinstance(payload, bytes)
            numbers.append(struct.unpack("!I", payload[:4])[0])
        assert numbers == sorted(numbers), "in order"
        assert guard.state()["gate"]["dropped_to_clients"] >= 1
        assert guard.gate._clients[1]._out._bytes <= TO_CLIENT.total_bytes


def test_a_client_that_never_reads_is_closed(
    server: RecordingServer, process: GuardProcess
) -> None:
    """By hand, as every library answers pings for its user."""
    guard = process
    with guard.connect() as driver:
        silent = socket.create_connection(("127.0.0.1", guard.port))
        silent.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        subscribe = {"op": "subscribe", "topic": JOINTS, "type": "sensor_msgs/JointState"}
        silent.sendall(frames(json.dumps(subscribe).encode(), 1, 1))
        wait_until(lambda: server.of("subscribe", JOINTS)[1:], 5, "subscribed")
        before = guard.memory_bytes
        opened_s = time.monotonic()
        while len(guard.state()["gate"]["clients"]) > 2:  # the driver, and who asks for the state
            assert time.monotonic() - opened_s < 6, "still there"
            for link in server.links[1:]:
                with contextlib.suppress(ConnectionClosed):
                    link.send(bytes(50_000))
            driver.payload()
        assert guard.memory_bytes - before < 20e6
        silent.close()


# --- everything around it killed ------------------------------------------------------------------


def read_joints(link: Caller) -> np.ndarray:
    return messages.joint_state(link.next("publish", JOINTS)["msg"]).position_rad


def test_the_arm_comes_to_rest_when_all_but_the_guard_is_killed() -> None:
    """The loop is killed in mid-motion; the guard brakes, and says so."""
    with FaultyRobot() as robot:
        upstream = f"127.0.0.1:{robot.port}"
        with command("guard", "--guard-listen", "127.0.0.1:0", "--guard-upstream", upstream,
                     fake=False) as guard:  # fmt: skip
            port = int(first_line(guard).partition("port ")[2].partition(",")[0])
            with drive(port) as loop:
                wait_until(lambda: robot.moved > 20, 40, "driving")
                loop.send_signal(signal.SIGKILL)
                loop.wait(5)
            with Caller(port) as watcher:
                watcher.subscribe(STATE_TOPIC, "std_msgs/String")
                assert watcher.state(lambda state: not state["running"])
                watcher.subscribe(JOINTS, "sensor_msgs/JointState")
                at_rest = read_joints(watcher)
                time.sleep(0.3)
                np.testing.assert_allclose(read_joints(watcher), at_rest, atol=1e-3)
        robot.assert_nothing_bad_arrived()


DRIVE = """
import sys, time
sys.path.insert(0, {tests!r})
from loop_rig import RunningLoop
with RunningLoop({port}) as loop:
    time.sleep(60)
"""


@contextlib.contextmanager
def drive(port: int) -> Iterator[subprocess.Popen[bytes]]:
    code = DRIVE.format(tests=str(RIGS), port=port)
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
