"""This machine's memory, GPU and tailnet → a section of the page, every few seconds."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

from crane_x7_remote.dashboard.board import Board

PERIOD_S: Final = 3.0
TIMEOUT_S: Final = 2.0
GIB: Final = 1024**3
QUERY: Final = "utilization.gpu,memory.used,memory.total,temperature.gpu"


class Machine:
    """A context manager that looks until it is left."""

    def __init__(self, board: Board, health: str | None) -> None:
        """`health` is the URL of boot's /healthz, if boot runs."""
        self._board = board
        self._health = health
        self._gpu = shutil.which("nvidia-smi")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="machine", daemon=True)

    def __enter__(self) -> Machine:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _look(self) -> None:
        while True:
            self._board.put(machine=self._section())
            if self._ended.wait(PERIOD_S):
                return

    def _section(self) -> dict[str, Any]:
        section: dict[str, Any] = memory()
        if self._gpu is not None:
            section |= {"gpus": gpus(self._gpu)}
        if self._health is not None:
            section |= {"parts": parts(self._health)}
        return section


def memory(path: Path = Path("/proc/meminfo")) -> dict[str, Any]:
    """Return used and total memory in GiB; empty where the system does not tell."""
    found: dict[str, int] = {}
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in path.read_text().splitlines():
            name, _, rest = line.partition(":")
            found[name] = int(rest.split()[0]) * 1024
    if "MemTotal" not in found or "MemAvailable" not in found:
        return {}
    used = found["MemTotal"] - found["MemAvailable"]
    return {"memory_gib": [round(used / GIB, 1), round(found["MemTotal"] / GIB, 1)]}


def gpus(program: str) -> list[dict[str, float]]:
    """Return use of each GPU by nvidia-smi; empty if it does not answer."""
    command = [program, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        rows = [[float(word) for word in line.split(",")] for line in said.stdout.splitlines()]
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return []
    return [
        {"use": row[0], "used_gib": round(row[1] / 1024, 1), "total_gib": round(row[2] / 1024, 1),
         "celsius": row[3]}
        for row in rows if len(row) == 4
    ]  # fmt: skip


def parts(url: str) -> dict[str, Any] | None:
    """Return what boot says of tailnet, sshd and role; None if it does not answer."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            said = json.loads(answer.read(65536))
    except urllib.error.HTTPError as error:  # 503: something is down, and it says what
        with contextlib.suppress(OSError, ValueError):
            said = json.loads(error.read(65536))
            return said if isinstance(said, dict) else None
        return None
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) else None
