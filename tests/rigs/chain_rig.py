"""The whole chain on one machine, each part a process as a user starts it:

sim-robot ← guard ← `tunnel local` by ssh ← `infer --dashboard` ← `ssh -L` ← whoever looks.

The robot's machine and the rented one are two sshds. The viewer's ssh goes over a link that can be
slow, be cut, or lose everything without a word.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from containers import wait_for
from driving_rig import CLEAN
from places import RIGS
from slow_link import LinkShape, SlowLink
from sshd_rig import Sshd
from tailnet_rig import LOOPBACK, Process, free_port
from websockets.sync.client import connect

from crane_x7_remote.guard.rules import STATE_TOPIC
from crane_x7_remote.rosbridge import protocol
from crane_x7_vla_rl.types import Array

REST_RAD_S: Final = 0.01
ROBOT: Final = [
    sys.executable, "-m", "crane_x7_remote", "sim-robot", "--arm", "kinematic", "--port", "0",
    "--guard", "0", "--control-rate", "60",
]  # fmt: skip


def ssh_words(sshd: Sshd) -> list[str]:
    """A login at `sshd` that asks nobody anything and notices a dead link, as docs/dashboard.md."""
    options = {
        "BatchMode": "yes", "StrictHostKeyChecking": "accept-new",
        "UserKnownHostsFile": str(sshd.known_hosts), "IdentityFile": str(sshd.identity),
        "IdentitiesOnly": "yes", "ExitOnForwardFailure": "yes", "ServerAliveInterval": "2",
        "ServerAliveCountMax": "3",
    }  # fmt: skip
    return ["ssh", "-F", "none", *(f"-o{name}={value}" for name, value in options.items())]


class Forward:
    """A viewer's `ssh -N -L` as docs/dashboard.md has it; a context manager."""

    def __init__(self, sshd: Sshd, ssh_port: int, target: int, log: Path) -> None:
        """`ssh_port` leads to `sshd`; `target` is a port of its machine."""
        self.port = free_port()
        self._sshd, self._log = sshd, log
        forward = f"{LOOPBACK}:{self.port}:{LOOPBACK}:{target}"
        self._words = ["-p", str(ssh_port), "-N", "-L", forward, sshd.destination]
        self._ssh: Process | None = None

    def start(self) -> None:
        """Open it, also again."""
        ssh = self._ssh = Process([*ssh_words(self._sshd), *self._words], self._log)

        def listens() -> bool:
            ssh.check()
            with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, self.port), 1):
                return True
            return False

        wait_for(listens, "ssh -L listens", 30)

    def kill(self) -> None:
        """End it without a word to anybody."""
        if self._ssh is not None:
            self._ssh.kill()

    def wait_gave_up(self) -> None:
        """Wait until ssh has noticed that its link is dead."""
        assert self._ssh is not None
        ssh = self._ssh.popen
        wait_for(lambda: ssh.poll() is not None, "ssh notices the dead link", 20)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Chain:
    """A context manager; `ssh` leads a viewer to the dashboard."""

    def __init__(
        self, folder: Path, shape: LinkShape | None = None, policy: str = "hanging"
    ) -> None:
        self._folder = folder
        self._shape = shape
        self._policy = policy
        self._ended = contextlib.ExitStack()
        self.dashboard = free_port()
        """Of the rented machine itself."""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._start(stack)
            self._ended = stack.pop_all()
        return self

    def _start(self, stack: contextlib.ExitStack) -> None:
        robots = stack.enter_context(Sshd(self._folder / "robot_sshd"))
        self.rented = stack.enter_context(Sshd(self._folder / "rented_sshd"))
        self.robot = self._process(stack, "robot", ROBOT)
        self.robot_port, self.guard = self._ports()
        self._tunnel(stack, robots)
        self.loop = self._process(stack, "loop", [
            sys.executable, str(RIGS / "infer_with_policy.py"), self._policy, "--rosbridge-host",
            LOOPBACK, "--rosbridge-port", str(self.tunnel_port), "--camera-pose", "sim",
            "--dashboard", str(self.dashboard),
        ])  # fmt: skip
        self._wait_said(self.loop, r"serving http")
        self.link = stack.enter_context(SlowLink(self.rented.port, self._shape))
        self.ssh = stack.enter_context(
            Forward(self.rented, self.link.port, self.dashboard, self._folder / "ssh.log")
        )

    @property
    def page(self) -> int:
        """The port at which a viewer finds the dashboard."""
        return self.ssh.port

    def _process(self, stack: contextlib.ExitStack, name: str, command: list[str]) -> Process:
        process = Process(command, self._folder / f"{name}.log", base=CLEAN)
        stack.callback(process.stop)
        return process

    def _ports(self) -> tuple[int, int]:
        found = self._wait_said(self.robot, r"ready: .* port (\d+), guard on port (\d+)")
        return int(found[1]), int(found[2])

    def _wait_said(self, process: Process, pattern: str) -> re.Match[str]:
        """Wait until a process says `pattern`; fail at once if it ends."""

        def said() -> re.Match[str] | None:
            process.check()
            return re.search(pattern, process.log.read_text(errors="replace"))

        wait_for(said, f"{process.log.name} says {pattern}", 60)
        found = said()
        assert found is not None
        return found

    def _tunnel(self, stack: contextlib.ExitStack, sshd: Sshd) -> None:
        self.tunnel_port = free_port()
        self.tunnel = self._process(stack, "tunnel", [
            sys.executable, "-m", "crane_x7_remote", "tunnel", "local", sshd.destination,
            "--ssh-port", str(sshd.port), "--identity", str(sshd.identity), "--known-hosts",
            str(sshd.known_hosts), "--rosbridge-port", str(self.guard), "--listen-port",
            str(self.tunnel_port),
        ])  # fmt: skip
        self._wait_said(self.tunnel, "up: rosbridge is at")

    def guard_state(self) -> dict[str, Any]:
        """The guard's newest state, from the guard itself."""
        state: dict[str, Any] = json.loads(next(self.guard_states())["data"])
        return state

    def guard_states(self) -> Iterator[dict[str, Any]]:
        """The guard's messages, at once when it stops."""
        return self._heard(self.guard, STATE_TOPIC)

    def speeds(self) -> Iterator[tuple[float, Array]]:
        """When each joint state of the robot came, and the joints' speeds; without the guard."""
        for message in self._heard(self.robot_port, "/joint_states"):
            yield time.monotonic(), np.abs(message["velocity"])

    def wait_rest(self, timeout_s: float = 5.0) -> None:
        """Wait until the arm has rested for 0.3 s."""
        begun_s, resting_s = time.monotonic(), None
        for at_s, speeds in self.speeds():
            if speeds.max() > REST_RAD_S:
                resting_s = None
            elif resting_s is None:
                resting_s = at_s
            elif at_s - resting_s > 0.3:
                return
            assert at_s - begun_s < timeout_s, f"the arm moves at {speeds.max():.2f} rad/s"

    def wait_moves(self, timeout_s: float = 20.0) -> None:
        """Wait until the arm moves."""
        begun_s = time.monotonic()
        for at_s, speeds in self.speeds():
            if speeds.max() > 10 * REST_RAD_S:
                return
            assert at_s - begun_s < timeout_s, "the arm does not move"

    def _heard(self, port: int, topic: str) -> Iterator[dict[str, Any]]:
        with connect(f"ws://{LOOPBACK}:{port}", proxy=None, compression=None) as socket:
            socket.send(protocol.encode_json({"op": "subscribe", "topic": topic}))
            while True:
                operation = protocol.decode(socket.recv(timeout=10))
                if operation.get("topic") == topic:
                    yield operation["msg"]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            for process in (self.robot, self.tunnel, self.loop):
                print(f"--- {process.log.name}\n{process.tail}")
        self._ended.close()


class StopWatch:
    """Notes when the guard says that it has stopped, on its own connection; a context."""

    def __init__(self, chain: Chain) -> None:
        self.stopped_s: float | None = None
        self._chain = chain
        self._ended = False
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def _listen(self) -> None:
        for state in self._chain.guard_states():
            if json.loads(state["data"])["stopped"] is not None:
                self.stopped_s = self.stopped_s or time.monotonic()
            if self._ended:
                return

    def after(self, pressed_s: float, timeout_s: float = 20.0) -> float:
        """Wait for the stop; return how long after `pressed_s` it came."""
        wait_for(lambda: self.stopped_s is not None, "the guard stops", timeout_s)
        assert self.stopped_s is not None
        return self.stopped_s - pressed_s

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join(10)
        assert not self._thread.is_alive()
