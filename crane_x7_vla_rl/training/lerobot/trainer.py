"""LeRobot's trainer as a child process. A command → its lines, until it ends.

It runs in its own process group, so that a Ctrl-C in the terminal reaches this process alone,
which then asks the trainer to save and stop (see save_whole.py). The trainer ends when this process
dies.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from crane_x7_vla_rl.training.errors import PackageError

SCRIPT: Final = Path(__file__).with_name("save_whole.py")
"""Starts LeRobot's trainer with saves that a kill cannot tear."""
ASKED_S: Final = 600.0
"""How long a trainer may take to save and stop after SIGTERM."""
POLL_S: Final = 0.2
PR_SET_PDEATHSIG: Final = 1


_libc: Final = ctypes.CDLL(None)


def _end_with_parent() -> None:
    """In the child: let the system end it when this process dies; Linux only."""
    if sys.platform == "linux":
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Trainer:
    """The process; use it as a context manager: it ends at the latest when that is left."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._asked_at_s: float | None = None
        try:
            self._process = subprocess.Popen(
                command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_end_with_parent,
            )  # fmt: skip
        except OSError as error:
            raise PackageError(f"{command[0]}: cannot be started: {error.strerror}") from error
        self._reader = threading.Thread(target=self._read, name="lerobot's lines", daemon=True)
        self._reader.start()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._reader.join(POLL_S * 10)

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
        return self._process.pid

    def lines(self) -> Iterator[str]:
        """Yield its lines; "" when none came for a moment. Ends with the process."""
        while True:
            try:
                line = self._lines.get(timeout=POLL_S)
            except queue.Empty:
                line = ""
                if self._late():
                    self.kill()
            if line is None:
                return
            yield line

    def code(self) -> int:
        """Return the exit code, once the lines have ended."""
        return self._process.wait()

    def ask(self) -> None:
        """Ask it, once, to save and stop."""
        if self._asked_at_s is None:
            self._asked_at_s = time.monotonic()
            self._send(signal.SIGTERM)

    @property
    def asked(self) -> bool:
        """Whether it has been told to stop."""
        return self._asked_at_s is not None

    def kill(self) -> None:
        """End it and its children immediately."""
        self._send(signal.SIGKILL)
        self._process.wait()

    def _late(self) -> bool:
        return self._asked_at_s is not None and time.monotonic() > self._asked_at_s + ASKED_S

    def _send(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    def _read(self) -> None:
        """Queue lines; a progress bar's carriage returns end lines, too."""
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for raw in stream:
                for part in raw.decode(errors="replace").replace("\r", "\n").split("\n"):
                    if part.strip():
                        self._lines.put(part.rstrip())
        self._lines.put(None)
