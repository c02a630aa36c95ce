"""The robot's side of a test: `sim-robot` in the test's network, and questions about the arm."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from containers import Network, wait_for

READY_TIMEOUT_S = 90
WATCH = Path(__file__).with_name("watch_robot.py")


@contextmanager
def sim_robot(network: Network, folder: Path, *flags: str) -> Iterator[None]:
    """`sim-robot` with `flags` behind rosbridge on 127.0.0.1:9090 of `network`."""
    log = folder / "sim-robot.log"
    with log.open("w") as sink:
        robot = subprocess.Popen(
            network.inside(sys.executable, "-m", "crane_x7_remote", "sim-robot", *flags),
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    try:

        def is_ready() -> bool:
            assert robot.poll() is None, f"sim-robot ended:\n{log.read_text()}"
            return "ready:" in log.read_text()

        wait_for(is_ready, "sim-robot is ready", READY_TIMEOUT_S)
        yield
    finally:
        robot.terminate()
        try:
            robot.wait(20)
        except subprocess.TimeoutExpired:
            robot.kill()
            robot.wait(10)


def watch(network: Network, what: str, limit_s: float) -> None:
    """Return once `what` of watch_robot.py is true; AssertionError after `limit_s`."""
    done = subprocess.run(
        network.inside(sys.executable, str(WATCH), what, str(limit_s)),
        capture_output=True,
        text=True,
        check=False,
        timeout=limit_s + 30,
    )
    assert done.returncode == 0, done.stderr
