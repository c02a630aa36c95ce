"""Whatever clients send, the simulated robot serves the others, answers, and stays small.

A separate process, watched from outside.
"""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import psutil
import pytest
from sim_robot_rig import Client, ready_port, started, state_now
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from crane_x7_remote.rosbridge import messages
from crane_x7_remote.settings import Settings
from crane_x7_vla_rl.robot import ARM_JOINT_NAMES, HOME_RAD

TOPICS = Settings()
CAMERA, JOINTS, ARM = TOPICS.camera_topic, TOPICS.joint_states_topic, TOPICS.arm_topic
CAMERA_TYPE, JOINTS_TYPE = "sensor_msgs/CompressedImage", "sensor_msgs/JointState"
MEGABYTES = 2**20
LONG = "x" * 4 * MEGABYTES
GROWTH_BYTES = 250 * MEGABYTES
"""Decoding one operation of 4 MB takes up to a hundred, for a moment."""


class Server:
    """A running sim-robot."""

    def __init__(self, pid: int, port: int, stack: ExitStack) -> None:
        self.process = psutil.Process(pid)
        self.port = port
        self._stack = stack

    def client(self) -> Client:
        link = connect(
            f"ws://127.0.0.1:{self.port}", max_size=None, compression=None, close_timeout=0.2
        )
        return Client(self._stack.enter_context(link))

    @property
    def size_bytes(self) -> int:
        return int(self.process.memory_info().rss)

    def assert_drives(self) -> None:
        """A new client sees joints that are numbers, and moves them."""
        client = self.client()
        client.subscribe(JOINTS, JOINTS_TYPE, compression="cbor")
        position = self._position(client)
        assert np.isfinite(position).all()
        target = HOME_RAD[:7] + (0.1 if abs(position[0] - HOME_RAD[0]) < 0.05 else 0.0)
        client.send("publish", topic=ARM, msg=trajectory(target))
        deadline = time.monotonic() + 5
        while np.abs(self._position(client) - target).max() > 0.02:
            assert time.monotonic() < deadline, "the arm did not arrive"

    def _position(self, client: Client) -> np.ndarray:
        while True:
            operation = client.next("publish")
            if operation["topic"] == JOINTS:
                return messages.joint_state(operation["msg"]).position_rad[:7]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    flags = ("--arm", "kinematic", "--port", "0")
    with started(*flags, stderr=subprocess.DEVNULL) as process, ExitStack() as stack:
        yield Server(process.pid, ready_port(process), stack)


@pytest.fixture
def new_client(server: Server) -> Iterator[Callable[[], Client]]:
    with ExitStack() as stack:
        server._stack = stack
        yield server.client
        server.assert_drives()


@pytest.fixture
def client(new_client: Callable[[], Client]) -> Client:
    return new_client()


def trajectory(target: np.ndarray) -> dict[str, Any]:
    point = {
        "positions": target.tolist(),
        "velocities": [0.0] * 7,
        "accelerations": [0.0] * 7,
        "time_from_start": {"sec": 0, "nanosec": 300_000_000},
    }
    return {"joint_names": list(ARM_JOINT_NAMES), "points": [point]}


# --- numbers -------------------------------------------------------------------------------------

NUMBERS = ["1.7e308", "-1.7e308", "1e400", "NaN", "-Infinity", "1" + "0" * 400, "1" + "0" * 5000]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(
    "path",
    [
        ("points", 0, "positions", 3),
        ("points", 0, "velocities", 3),
        ("points", 0, "accelerations", 3),
        ("points", 0, "time_from_start", "sec"),
        ("points", 0, "time_from_start", "nanosec"),
        ("header", "stamp", "sec"),
    ],
)
def test_a_trajectory_of_huge_numbers_moves_nothing_and_cuts_nothing(
    client: Client, path: tuple[Any, ...], number: str
) -> None:
    before = state_now(client)["controller"]
    message = trajectory(HOME_RAD[:7]) | {"header": {"stamp": {"sec": 1, "nanosec": 0}}}
    message["header"]["stamp"]["sec"] = 0
    place = message
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = "HERE"
    operation = json.dumps({"op": "publish", "topic": ARM, "msg": message})
    client.connection.send(operation.replace('"HERE"', number))
    after = state_now(client)["controller"]
    assert after["accepted"] == before["accepted"]
    if len(number) < 5000:  # Python reads no longer integers: the whole operation is no JSON.
        assert sum(after["rejected"].values()) == sum(before["rejected"].values()) + 1
    assert np.isfinite(after["max_step_rad"])


@pytest.mark.parametrize("number", [number for number in NUMBERS if number != "-1.7e308"])
@pytest.mark.parametrize(
    "operation",
    [
        '{"op": "subscribe", "topic": "/joint_states", "throttle_rate": N}',
        '{"op": "subscribe", "topic": "/joint_states", "queue_length": 1, "id": N}',
        '{"op": "publish", "topic": "/sim/clock_step", "msg": {"data": N}}',
        '{"op": "publish", "topic": "/joint_states", "msg": {"header": {"stamp": {"sec": N}}}}',
        '{"op": "send_action_goal", "id": "g",'
        ' "action": "/crane_x7_gripper_controller/gripper_cmd",'
        ' "action_type": "control_msgs/action/GripperCommand",'
        ' "args": {"command": {"position": N}}}',
        '{"op": N}',
        '{"op": "set_level", "level": N}',
    ],
)
def test_a_number_that_fits_nowhere_gets_a_status(
    client: Client, operation: str, number: str
) -> None:
    client.connection.send(operation.replace("N", number, 1))
    status = client.next("status")
    assert status["level"] == "error"
    assert "internal" not in status["msg"]


# --- sizes ---------------------------------------------------------------------------------------


def deep(opening: str, closing: str, inside: str = "0") -> str:
    return opening * 300_000 + inside + closing * 300_000


@pytest.mark.parametrize(
    "payload",
    [
        json.dumps({"op": LONG}),
        json.dumps({"op": "subscribe", "topic": LONG, "type": "std_msgs/String"}),
        json.dumps({"op": "subscribe", "topic": "/a", "type": LONG}),
        json.dumps({"op": "subscribe", "topic": "/a", "type": "std_msgs/String", "id": LONG}),
        json.dumps({"op": "subscribe", "topic": JOINTS, "compression": LONG}),
        json.dumps({"op": "subscribe", "topic": JOINTS, "throttle_rate": LONG}),
        json.dumps({"op": "advertise", "topic": LONG, "type": "std_msgs/String"}),
        json.dumps({"op": "advertise", "topic": "/a", "type": LONG}),
        json.dumps({"op": "publish", "topic": LONG, "msg": {}}),
        json.dumps({"op": "publish", "topic": "/sim/hand", "msg": {"data": LONG}}),
        json.dumps({"op": "publish", "topic": "/sim/hand", "msg": {LONG: 1}}),
        json.dumps({"op": "publish", "topic": "/sim/hand", "msg": LONG}),
        json.dumps({"op": "publish", "topic": ARM, "msg": {"joint_names": LONG}}),
        json.dumps({"op": "publish", "topic": ARM, "msg": {"points": [{}] * 1_000_000}}),
        json.dumps({"op": "send_action_goal", "action": LONG, "action_type": "a", "id": "b"}),
        json.dumps({"op": "send_action_goal", "action": "/a", "action_type": LONG, "id": "b"}),
        json.dumps({"op": "send_action_goal", "action": "/a", "action_type": "a", "id": LONG}),
        json.dumps({"op": "send_action_goal", "action": "/a", "action_type": "a", "args": LONG}),
        json.dumps({"op": "cancel_action_goal", "action": LONG, "id": "b"}),
        json.dumps({"op": "set_level", "level": LONG}),
        json.dumps([LONG]),
        LONG,
        LONG.encode(),
        deep("[", "]"),
        deep('{"a":', "}"),
        '{"op": "publish", "topic": "/sim/hand", "msg": {"data": ' + deep("[", "]") + "}}",
        b"\x81" * 300_000 + b"\x00",
        b"\xa1\x62op" * 300_000 + b"\x00",
        b"\xc2" * 300_000 + b"\x41\x00",
        b"\x9b" + b"\x7f" * 8,
        b"\x5b" + b"\x7f" * 8,
        b"\xbb" + b"\x7f" * 8,
        b"\xa1\x62op\xd8\x45\x5b" + b"\x7f" * 8,
    ],
    ids=lambda payload: f"{payload[:40]!r}",
)
def test_megabytes_are_answered_in_a_few_words(client: Client, payload: str | bytes) -> None:
    client.connection.send(payload)
    answers = [json.loads(client.connection.recv(timeout=15))]
    answers += client.collect(0.1)
    status = next(answer for answer in answers if answer["op"] == "status")
    assert status["level"] == "error"
    assert "internal" not in status["msg"]
    assert all(len(json.dumps(answer)) < 4000 for answer in answers)


def test_a_flood_of_4_mb_operations_leaves_the_server_small(
    server: Server, new_client: Callable[[], Client]
) -> None:
    """Eight clients, each with its own topics and a reader that does not read."""
    before = server.size_bytes
    peak, done = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, server.size_bytes)

    watcher = threading.Thread(target=watch)
    watcher.start()
    clients = [new_client() for _ in range(8)]
    for number, flooder in enumerate(clients):
        sleeper = new_client()
        sleeper.subscribe(f"/flood_{number}", "std_msgs/String")
        flooder.send("advertise", topic=f"/flood_{number}", type="std_msgs/String")
    try:
        for round_number in range(5):
            for number, flooder in enumerate(clients):
                text = f"{round_number}" + LONG
                flooder.send("publish", topic=f"/flood_{number}", msg={"data": text})
                flooder.send("advertise", topic=text, type="std_msgs/String")
                flooder.send("subscribe", topic=JOINTS, type=JOINTS_TYPE, id=text)
                flooder.collect(0.0)
    finally:
        done.set()
        watcher.join()
    # 16 MB may wait for each reader, besides what its socket holds.
    assert peak - before < 8 * 20 * MEGABYTES + GROWTH_BYTES, f"{(peak - before) / 1e6:.0f} MB"


def test_a_flood_of_ids_and_topics_is_bounded(server: Server, client: Client) -> None:
    client.send("set_level", level="none")
    before = server.size_bytes
    for number in range(20_000):
        name = f"/{number}_" + "x" * 240
        client.send("subscribe", topic=JOINTS, type=JOINTS_TYPE, id=name, throttle_rate=10**6)
        client.send("subscribe", topic=name, type="std_msgs/String", id=name)
        client.send("advertise", topic=name, type="std_msgs/String")
    client.send("set_level", level="error")
    client.send("subscribe", topic="/one/more", type="std_msgs/String")
    assert "at most 256" in client.next("status", timeout_s=20)["msg"]
    client.send("advertise", topic="/one/more", type="std_msgs/String")
    assert "at most 256" in client.next("status")["msg"]
    assert server.size_bytes - before < 50 * MEGABYTES
    client.send("unsubscribe", topic=JOINTS)
    client.send("unsubscribe", topic="/0_" + "x" * 240)
    client.subscribe(JOINTS, JOINTS_TYPE)
    assert client.next("publish")["topic"] == JOINTS


def test_a_flood_of_goals_and_hands_is_bounded(server: Server, client: Client) -> None:
    before = server.size_bytes
    for number in range(3000):
        client.send(
            "send_action_goal",
            id=f"{number}" + "x" * 200,
            action=TOPICS.gripper_action,
            action_type="control_msgs/action/GripperCommand",
            args={"command": {"position": 0.2 + number % 2 / 10}},
        )
        client.send("publish", topic="/sim/hand", msg={"data": "y" * 1000})
    for _ in range(3000):
        client.next("action_result", timeout_s=30)
    assert "action_result" not in {answer["op"] for answer in client.collect(0.3)}
    assert server.size_bytes - before < 50 * MEGABYTES


def test_answers_that_are_not_read_wait_within_bounds(server: Server, client: Client) -> None:
    """The client is not read any more, so that its own sending stops."""
    before = server.size_bytes
    nonsense = json.dumps({"op": "fly", "id": "i" * 200, "more": "x" * 1000})

    def flood() -> None:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(200_000):
                client.connection.send(nonsense)

    flooder = threading.Thread(target=flood, daemon=True)
    flooder.start()
    flooder.join(5)
    assert server.size_bytes - before < 50 * MEGABYTES
    assert flooder.is_alive(), "nobody keeps it from sending"
    client.connection.socket.shutdown(socket.SHUT_RDWR)
    flooder.join(10)
    assert not flooder.is_alive()


# --- many ----------------------------------------------------------------------------------------


def test_hundreds_of_connections_are_served_and_leave_nothing_behind(server: Server) -> None:
    wanted = 2000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, wanted), hard), hard))
    files = server.process.num_fds()
    with ExitStack() as stack:
        server._stack = stack
        clients = [server.client() for _ in range(300)]
        for client in clients:
            client.subscribe(CAMERA, CAMERA_TYPE, compression="cbor", throttle_rate=2000)
        for client in clients:
            assert client.next("publish", timeout_s=20)["topic"] == CAMERA
        server.assert_drives()
    deadline = time.monotonic() + 20
    while server.process.num_fds() > files + 5:
        assert time.monotonic() < deadline, f"{server.process.num_fds()} files, {files} before"
        time.sleep(0.1)


def test_one_client_too_many_is_turned_away_in_words() -> None:
    from crane_x7_remote.sim_robot import server as module
    from crane_x7_remote.sim_robot.arm import KinematicArm
    from crane_x7_remote.sim_robot.robot import RobotConfig, SimRobot

    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr(module, "MOST_CLIENTS", 3)
        config = RobotConfig(server=module.ServerConfig(port=0))
        robot = stack.enter_context(SimRobot(config, KinematicArm))
        url = f"ws://127.0.0.1:{robot.port}"
        clients = [Client(stack.enter_context(connect(url, max_size=None))) for _ in range(3)]
        with pytest.raises(InvalidStatus, match="503"):
            connect(url)
        clients[0].subscribe(JOINTS, JOINTS_TYPE)
        assert clients[0].next("publish")["topic"] == JOINTS


def test_a_client_that_reads_slowly_stalls_no_other(new_client: Callable[[], Client]) -> None:
    slow, other = new_client(), new_client()
    slow.subscribe(CAMERA, CAMERA_TYPE)
    other.subscribe(JOINTS, JOINTS_TYPE)
    for _ in range(10):
        slow.connection.recv(timeout=5)
        assert len(other.collect(0.3)) > 3
