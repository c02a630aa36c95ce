# ruff: noqa: ARG002 - the core's methods take what they take
"""A real gate on real sockets, with a core that is told what to do; and the command with that core.

`python tests/rigs/guard_rig.py guard …` runs `crane-x7-remote guard …` with the `FakeCore`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import psutil
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from crane_x7_remote.guard.core import CoreConfig, GuardCore, Send, Tell
from crane_x7_remote.guard.door import DoorConfig
from crane_x7_remote.guard.gate import Gate, GateConfig
from crane_x7_remote.guard.rules import STATE_TOPIC, STOP_TOPIC, AllowList, Names
from crane_x7_remote.rosbridge import protocol
from crane_x7_remote.rosbridge.connection import LinkConfig
from crane_x7_vla_rl.robot import ARM_JOINT_NAMES, HOME_RAD, JOINT_NAMES

CAMERA, JOINTS = "/camera/color/image_raw/compressed", "/joint_states"
ARM, PREDICTION = "/crane_x7_arm_controller/joint_trajectory", "/vla/predicted_trajectory"
INSTRUCTION, ACTION = "/vla/update_instruction", "/vla/predicted_action"
GRIPPER = "/crane_x7_gripper_controller/gripper_cmd"
BRAKE_S = 0.2


class FakeCore(GuardCore):
    """Lets the first driver's trajectories pass as they are; counts what it is called with."""

    def __init__(self, config: CoreConfig | None = None) -> None:
        self.config = config or CoreConfig()
        self.calls: list[tuple[str, object]] = []
        self.goal_refusal: str | None = None
        self.fault: Exception | None = None
        self.wake_at_s: float | None = None
        self.woken: list[float] = []
        self._stopped: str | None = None
        self._driver: int | None = None
        self._ends_s = 0.0

    def _note(self, name: str, what: object) -> None:
        self.calls.append((name, what))
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault

    def of(self, name: str) -> list[Any]:
        return [what for called, what in list(self.calls) if called == name]

    def hear_joints(self, message: Any, now_s: float) -> list[Any]:
        self._note("hear_joints", message)
        return []

    def hear_echo(self, message: Any, now_s: float) -> list[Any]:
        self._note("hear_echo", message)
        return []

    def upstream_changed(self, is_up: bool, now_s: float) -> list[Any]:
        self._note("upstream_changed", is_up)
        return []

    def take_trajectory(self, driver: int, message: Any, now_s: float) -> list[Any]:
        self._note("take_trajectory", (driver, message))
        if self._stopped is not None:
            return [Tell(driver, "warning", f"stopped: {self._stopped}")]
        if self._driver is None:
            self._driver = driver
        if driver != self._driver:
            return [Tell(driver, "warning", f"client {self._driver} drives the arm")]
        self._ends_s = now_s + BRAKE_S
        return [Send(self.config.arm_topic, message)]

    def take_prediction(self, driver: int, message: Any, now_s: float) -> list[Any]:
        self._note("take_prediction", (driver, message))
        return [] if self._stopped else [Send(self.config.trajectory_topic, message)]

    def take_goal(self, driver: int, position_rad: object, now_s: float) -> str | None:
        self._note("take_goal", (driver, position_rad))
        return self.goal_refusal or self._stopped

    def client_left(self, driver: int, now_s: float, clean: bool = False) -> list[Any]:
        self._note("client_left", (driver, clean))
        if driver == self._driver:
            self._driver = None
        return []

    @property
    def stopped(self) -> str | None:
        return self._stopped

    def stop(self, why: str, now_s: float) -> list[Any]:
        self._note("stop", why)
        if self._stopped is not None:
            return []
        self._stopped = why
        return [Send(self.config.arm_topic, trajectory("brake"))] if self._ends_s > now_s else []

    def resume(self, now_s: float) -> list[Any]:
        self._note("resume", None)
        self._stopped = None
        return []

    @property
    def wake_s(self) -> float | None:
        return self.wake_at_s

    def wake(self, now_s: float) -> list[Any]:
        self.woken.append(now_s)
        self.wake_at_s = None
        return []

    def report(self, now_s: float) -> dict[str, Any]:
        ends_s = max(0.0, self._ends_s - now_s)
        return {"running": ends_s > 0, "driver": self._driver, "ends_s": ends_s}


class RunningGuard:
    """A gate on its own thread; a context manager."""

    def __init__(
        self,
        upstream_port: int,
        names: Names | None = None,
        token: str | None = None,
        max_clients: int = 8,
        core: GuardCore | None = None,
    ) -> None:
        self.core: Any = core or FakeCore()
        self._config = GateConfig(
            LinkConfig("127.0.0.1", upstream_port), JOINTS, ARM, DoorConfig(token, max_clients)
        )
        self._rules = AllowList(names or Names())
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._ready, self._end = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="guard")
        self.failure: BaseException | None = None
        self.token = token

    async def _run(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.gate = Gate(self._config, self._rules, self.core)
        await self.gate.start([self._listener])
        self._ready.set()
        await self._end.wait()
        await self.gate.end("the test is over")

    def call(self, what: Callable[[], Any]) -> Any:
        """Run something on the gate's event loop and return what it returns."""

        async def run() -> Any:
            return what()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(5)

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = self.call(self.gate.state)
        return found

    @property
    def refused(self) -> dict[str, int]:
        found: dict[str, int] = self.state()["gate"]["refused"]
        return found

    def connect(self, path: str = "/", token: str | None = None, **more: Any) -> Caller:
        return Caller(self.port, path, token or self.token, **more)

    def __enter__(self) -> RunningGuard:
        self._thread.start()
        assert self._ready.wait(5)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)
        self._listener.close()
        assert not self._thread.is_alive()


class GuardProcess:
    """The command with the FakeCore, in its own process; a context manager."""

    def __init__(self, upstream_port: int, *flags: str) -> None:
        words = ["--guard-listen", "127.0.0.1:0", "--guard-upstream", f"127.0.0.1:{upstream_port}"]
        self._command = command("guard", *words, *flags)

    def connect(self, path: str = "/", **more: Any) -> Caller:
        return Caller(self.port, path, **more)

    def state(self) -> dict[str, Any]:
        with self.connect("/stop") as client:
            client.subscribe(STATE_TOPIC, "std_msgs/String")
            return client.state()

    @property
    def memory_bytes(self) -> int:
        rss: int = psutil.Process(self.process.pid).memory_info().rss
        return rss

    def __enter__(self) -> GuardProcess:
        self.process = self._command.__enter__()
        line = first_line(self.process)
        self.port = int(line.partition("port ")[2].partition(",")[0])
        return self

    def __exit__(self, *_: object) -> None:
        self._command.__exit__(None, None, None)


class Caller:
    """A rosbridge client that does what a test says; a context manager."""

    def __init__(self, port: int, path: str = "/", token: str | None = None, **more: Any) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.link: ClientConnection = connect(
            f"ws://127.0.0.1:{port}{path}",
            additional_headers=headers,
            compression=None,
            max_size=None,
            proxy=None,
            close_timeout=1,
            **more,
        ).__enter__()

    def send(self, *operations: dict[str, Any] | str | bytes) -> None:
        for operation in operations:
            is_dict = isinstance(operation, dict)
            self.link.send(json.dumps(operation) if is_dict else operation)

    def publish(self, topic: str, message: Any, **more: Any) -> None:
        self.send({"op": "publish", "topic": topic, "msg": message, **more})

    def subscribe(self, topic: str, kind: str, compression: str = "none", **more: Any) -> None:
        self.send(
            {"op": "subscribe", "topic": topic, "type": kind, "compression": compression, **more}
        )

    def payload(self, timeout_s: float = 5.0) -> str | bytes:
        return self.link.recv(timeout=timeout_s)

    def next(self, op: str, topic: str | None = None, timeout_s: float = 5.0) -> dict[str, Any]:
        """Return the next operation of this kind."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            operation = protocol.decode(self.link.recv(timeout=deadline_s - time.monotonic()))
            if operation["op"] == op and topic in (None, operation.get("topic")):
                return operation

    def state(self, until: Callable[[dict[str, Any]], object] = lambda _: True) -> dict[str, Any]:
        """Return the next state for which `until` holds; the topic must be subscribed."""
        while True:
            found: dict[str, Any] = json.loads(self.next("publish", STATE_TOPIC)["msg"]["data"])
            if until(found):
                return found

    def end(self) -> ConnectionClosed:
        """Read until the guard closes the connection; return how it did."""
        try:
            while True:
                self.payload()
        except ConnectionClosed as closed:
            return closed

    def close(self) -> None:
        self.link.close()

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def trajectory(
    frame_id: str = "vla/0a1b2c3d/1/500", names: Any = ARM_JOINT_NAMES
) -> dict[str, Any]:
    """A JointTrajectory that stays at home."""
    home = [float(value) for value in HOME_RAD[: len(names)]]
    point = {
        "positions": home,
        "velocities": [0.0] * len(names),
        "accelerations": [],
        "effort": [],
        "time_from_start": {"sec": 0, "nanosec": 500_000_000},
    }
    header = {"stamp": {"sec": 1, "nanosec": 0}, "frame_id": frame_id}
    return {"header": header, "joint_names": list(names), "points": [point]}


def move_arm(port: int, seconds: float) -> None:
    """Move the arm from beside the guard, as a person with another program does."""
    message = trajectory(frame_id="")
    message["header"]["stamp"] = {"sec": 0, "nanosec": 0}
    (point,) = message["points"]
    point |= {"velocities": [], "time_from_start": {"sec": int(seconds), "nanosec": 0}}
    point["positions"][0] += 0.5
    with Caller(port) as caller:
        caller.send({"op": "advertise", "topic": ARM, "type": "trajectory_msgs/JointTrajectory"})
        caller.publish(ARM, message)
        time.sleep(seconds + 1)


def prediction(frame_id: str = "vla/0a1b2c3d/1/500") -> dict[str, Any]:
    return trajectory(frame_id, JOINT_NAMES)


def goal(position_rad: Any = 0.5, operation_id: str = "goal/1") -> dict[str, Any]:
    return protocol.send_action_goal(
        GRIPPER,
        "control_msgs/action/GripperCommand",
        {"command": {"position": position_rad, "max_effort": 1.0}},
        id=operation_id,
    )


@contextlib.contextmanager
def command(*words: str, fake: bool = True) -> Iterator[subprocess.Popen[str]]:
    """`crane-x7-remote WORDS` as a process, killed at the end if it still runs."""
    start = [sys.executable, __file__] if fake else [sys.executable, "-m", "crane_x7_remote"]
    process = subprocess.Popen(
        [*start, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=10)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


__all__ = ["STATE_TOPIC", "STOP_TOPIC"]

if __name__ == "__main__":
    from crane_x7_remote import cli
    from crane_x7_remote.guard import command as guard_command

    guard_command.GuardCore = FakeCore  # type: ignore[misc]
    sys.exit(cli.main())
