"""Robot, guard, and `infer --dashboard` as a process: what a browser is opened beside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
from guard_rig import RunningGuard
from loop_rig import FaultyRobot, wait_until
from places import RIGS
from tailnet_rig import free_port

from crane_x7_remote.guard.core import CoreConfig, GuardCore

SCRIPT = RIGS / "infer_with_policy.py"
CLEAN = {
    key: value
    for key, value in os.environ.items()
    if not key.startswith(("VLA_", "ROSBRIDGE_", "DASHBOARD_"))
}
TOKEN = "a-guards-token-of-letters"


class Driving:
    """Robot, guard, and `infer --dashboard` as a process."""

    def __init__(self, folder: Path, policy: str = "hanging", guarded: bool = True) -> None:
        self.page = free_port()
        self.log = folder / "loop.log"
        self.metrics = folder / "metrics.json"
        self._policy = policy
        self._guarded = guarded

    def __enter__(self) -> Driving:
        self.robot = FaultyRobot().__enter__()
        self.guard = RunningGuard(self.robot.port, token=TOKEN, core=GuardCore(CoreConfig()))
        self.guard.__enter__()
        port = self.guard.port if self._guarded else self.robot.port
        command = [
            sys.executable, str(SCRIPT), self._policy, "--rosbridge-host", "127.0.0.1",
            "--rosbridge-port", str(port), "--rosbridge-token", TOKEN, "--camera-pose", "sim",
            "--metrics", str(self.metrics), "--dashboard", str(self.page),
        ]  # fmt: skip
        with self.log.open("w") as file:
            self.loop = subprocess.Popen(command, stderr=file, stdout=file, env=CLEAN)
        wait_until(lambda: "serving http" in self.log.read_text(), 60, "the page is served")
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.kill()
        self.loop.wait()
        self.guard.__exit__(None, None, None)
        self.robot.__exit__(None, None, None)

    @property
    def child(self) -> psutil.Process:
        (child,) = psutil.Process(self.loop.pid).children()
        return child

    def trajectories(self) -> int:
        try:
            return int(json.loads(self.metrics.read_text())["trajectories"])
        except (OSError, ValueError):
            return 0

    def wait_driving(self) -> None:
        wanted = self.trajectories() + 5
        wait_until(lambda: self.trajectories() >= wanted, 30, "the loop drives")
