"""The same with real processes: seconds, a seed → the path that the arm's controller executed.

sim-robot, guard, a relay as the link, and a loop run as separate processes, with sockets between
them; one at a time is stopped with SIGSTOP for 0.05 to 1 s and continues with SIGCONT. The result
is the report of sim-robot's controller on /sim/state.

    python -m safety_bench.processes loop PORT | relay PORT      commands of the processes
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

SCRIPTS = Path(__file__).resolve().parents[1]
STATE, ARM = "/sim/state", "/crane_x7_arm_controller/joint_trajectory"
REMOTE = (sys.executable, "-m", "crane_x7_remote")
OURS = (sys.executable, "-m", "safety_bench.processes")
START_S = 30.0


class Fleet:
    """The four processes, and the robot's state."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        robot_port = self._start(
            "robot", *REMOTE, "sim-robot", "--arm", "kinematic", "--control-rate", "100",
            "--port", "0",
        )  # fmt: skip
        guard_port = self._start(
            "guard", *REMOTE, "guard", "--guard-listen", "127.0.0.1:0",
            "--guard-upstream", f"127.0.0.1:{robot_port}",
        )  # fmt: skip
        link_port = self._start("link", *OURS, "relay", str(guard_port))
        self.state: dict[str, Any] = {}
        self.driven_s: list[float] = []
        """When trajectories of the loop came back from the arm's topic."""
        threading.Thread(target=self._listen, args=(robot_port,), daemon=True).start()
        self._start("loop", *OURS, "loop", str(link_port))

    pids: dict[str, int]

    def _start(self, name: str, *command: str) -> int:
        """Start a process; return the port named last in the line that it prints first."""
        environ = os.environ | {"PYTHONPATH": f"{SCRIPTS}:{os.environ.get('PYTHONPATH', '')}"}
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
        self._stack.callback(_end, child)
        self.pids = {**getattr(self, "pids", {}), name: child.pid}
        assert child.stdout is not None
        line = child.stdout.readline()
        numbers = [word.strip(",") for word in line.split() if word.strip(",").isdigit()]
        if not numbers:
            raise RuntimeError(f"{name} did not start: {line!r}")
        return int(numbers[0])

    def _listen(self, port: int) -> None:
        with contextlib.suppress(WebSocketException, OSError):
            self._follow(port)

    def _follow(self, port: int) -> None:
        with connect(f"ws://127.0.0.1:{port}", max_size=None, ping_interval=None) as link:
            for topic, kind in (
                (STATE, "std_msgs/String"),
                (ARM, "trajectory_msgs/JointTrajectory"),
            ):
                link.send(json.dumps({"op": "subscribe", "topic": topic, "type": kind}))
            for payload in link:
                operation = json.loads(payload)
                if operation.get("topic") == STATE:
                    self.state = json.loads(operation["msg"]["data"])["controller"]
                elif operation.get("topic") == ARM and _is_the_loops(operation["msg"]):
                    self.driven_s.append(time.monotonic())

    def wait_driving(self, since_s: float, timeout_s: float) -> float | None:
        """Return the time from `since_s` until the next trajectory came back; None if none did."""
        while time.monotonic() < since_s + timeout_s:
            if self.driven_s and self.driven_s[-1] > since_s:
                return next(each for each in self.driven_s if each > since_s) - since_s
            time.sleep(0.01)
        return None


def _is_the_loops(trajectory: dict[str, Any]) -> bool:
    return str(trajectory["header"]["frame_id"]).startswith("vla/")


def _end(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGCONT)
    child.terminate()
    try:
        child.wait(5)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    if child.stdout is not None:
        child.stdout.close()


def measure(
    seconds: float, seed: int, names: Sequence[str] = ("link", "robot", "guard", "loop")
) -> dict[str, Any]:
    """Stop the named processes at random; return the controller's report, `stops`, `slowest_s`."""
    chance = random.Random(seed)
    with contextlib.ExitStack() as stack:
        fleet = Fleet(stack)
        if fleet.wait_driving(time.monotonic(), START_S) is None:
            raise RuntimeError(f"the arm was not driven within {START_S:g} s")
        stops, slowest_s, end_s = 0, 0.0, time.monotonic() + seconds
        while time.monotonic() < end_s:
            pid = fleet.pids[chance.choice(list(names))]
            os.kill(pid, signal.SIGSTOP)
            time.sleep(chance.uniform(0.05, 1.0))
            os.kill(pid, signal.SIGCONT)
            stops += 1
            back_s = fleet.wait_driving(time.monotonic(), 10.0)
            slowest_s = max(slowest_s, 10.0 if back_s is None else back_s)
            time.sleep(chance.expovariate(1.0))
        time.sleep(1.0)
        return {**fleet.state, "stops": stops, "slowest_s": slowest_s}


# --- commands of the processes -------------------------------------------------------------------


class FastPolicy:
    """Like world.FastPolicy, in real time."""

    def predict(self, observations: Sequence[Any]) -> list[Any]:
        from safety_bench.world import swing

        time.sleep(0.01)
        return [swing(observations[0], time.monotonic())]

    def reset(self) -> None:
        """Do nothing; the policy has no state."""


def loop(port: int) -> None:
    """Drive through `port` until a signal."""
    from crane_x7_remote.inference.config import LoopConfig
    from crane_x7_remote.inference.limits import Limits
    from crane_x7_remote.inference.loop import InferenceLoop
    from crane_x7_remote.rosbridge.client import RosbridgeClient
    from crane_x7_remote.rosbridge.config import ClientConfig

    config = LoopConfig(secrets.token_hex(4))
    link = ClientConfig(host="127.0.0.1", port=port, advertise=config.topics.published)
    with RosbridgeClient(link) as client:
        driver = InferenceLoop(client, FastPolicy(), config, Limits(), time.monotonic)
        driver.warm_up()
        print(f"ready: loop on port {port}", flush=True)
        threading.Thread(target=_stop_on_signal(driver.stop), daemon=True).start()
        driver.run()


def _stop_on_signal(stop: Callable[[], None]) -> Callable[[], None]:
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: os.write(end, b"x"))
    begin, end = os.pipe()

    def wait() -> None:
        os.read(begin, 1)
        asked.set()
        stop()

    return wait


def relay(port: int) -> None:
    """Relay each connection to `port`; while stopped, it is a stalled link."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"ready: relay on port {listener.getsockname()[1]}", flush=True)
        while True:
            near, _ = listener.accept()
            far = socket.create_connection(("127.0.0.1", port))
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for pair in ((near, far), (far, near)):
                threading.Thread(target=_pump, args=pair, daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    for chunk in _chunks(source):
        try:
            sink.sendall(chunk)
        except OSError:
            break
    for one in (source, sink):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


def _chunks(source: socket.socket) -> Iterator[bytes]:
    with contextlib.suppress(OSError):
        while chunk := source.recv(65536):
            yield chunk


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    np.seterr(all="raise")
    {"loop": loop, "relay": relay}[sys.argv[1]](int(sys.argv[2]))
