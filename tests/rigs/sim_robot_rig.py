"""The simulated robot as a process, and a rosbridge client of a few lines over real WebSockets."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from websockets.sync.client import ClientConnection

from crane_x7_remote.rosbridge import protocol
from crane_x7_remote.sim_robot.robot import SIM_STATE_TOPIC

READY = re.compile(r"ready: .* on 127\.0\.0\.1 port (\d+)")


class Client:
    """A rosbridge client of a few lines that sends text and returns operations."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def send(self, op: str, **fields: Any) -> None:
        self.connection.send(json.dumps({"op": op, **fields}))

    def subscribe(self, topic: str, type_name: str, **fields: Any) -> None:
        self.send("subscribe", topic=topic, type=type_name, **fields)

    def next(self, op: str, timeout_s: float = 5.0) -> dict[str, Any]:
        """The next operation of that kind, others skipped; fails after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            payload = self.connection.recv(timeout=max(0.0, deadline - time.monotonic()))
            operation = protocol.decode(payload)
            if operation["op"] == op:
                return operation

    def collect(self, duration_s: float) -> list[dict[str, Any]]:
        """All operations that arrive within `duration_s`."""
        deadline, operations = time.monotonic() + duration_s, []
        while True:
            try:
                payload = self.connection.recv(timeout=max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                return operations
            operations.append(protocol.decode(payload))


def state_now(client: Client) -> dict[str, Any]:
    """The next /sim/state but one, so that it tells of what was sent before."""
    client.subscribe(SIM_STATE_TOPIC, "std_msgs/String")
    seen = 0
    while True:
        operation = client.next("publish")
        seen += operation["topic"] == SIM_STATE_TOPIC
        if seen == 2:
            state: dict[str, Any] = json.loads(operation["msg"]["data"])
            return state


@contextmanager
def started(*flags: str, stderr: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    """The command, killed at the end if it still runs. It blocks once a pipe that nobody reads is
    full of its log: give DEVNULL for `stderr` where there will be many clients."""
    process = subprocess.Popen(
        [sys.executable, "-m", "crane_x7_remote", "sim-robot", *flags],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=10)


def ready_port(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    line = process.stdout.readline()
    match = READY.match(line)
    assert match, f"expected a line with 'ready', got {line!r}"
    return int(match[1])
