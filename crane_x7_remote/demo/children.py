"""Processes of the demo: each logs to a file and ends with the demo."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from crane_x7_remote.errors import DemoError
from crane_x7_remote.system.parent_death import die_with

LAST_LINES = 8


class DemoProcess:
    """One `crane-x7-remote` process; a context manager that ends it."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        """Start `python -m crane_x7_remote` with `command`; both its outputs go to `log`."""
        self.name = name
        self.log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "crane_x7_remote", *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the demo passes Ctrl-C on, in order
                preexec_fn=die_with(os.getpid()),
            )

    def __enter__(self) -> DemoProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id; the child leads a process group of the same number."""
        return self._process.pid

    def check(self) -> None:
        """Raise DemoError with its last lines if the process has ended."""
        code = self._process.poll()
        if code is not None:
            raise DemoError(
                f"{self.name} ended with exit code {code}; the end of {self.log}:\n{self.tail()}"
            )

    def wait_for_line(
        self, start: str, timeout_s: float, is_stopped: Callable[[], bool] = lambda: False
    ) -> str:
        """Return the first line of output that begins with `start`.

        Returns "" if `is_stopped` is true first; raises DemoError if the process ends or after the
        timeout.
        """
        deadline_s = time.monotonic() + timeout_s
        while not is_stopped():
            for line in self.log.read_text(errors="replace").splitlines():
                if line.startswith(start):
                    return line
            self.check()
            if time.monotonic() > deadline_s:
                raise DemoError(
                    f"{self.name} did not print {start!r} within {timeout_s:g} s; the end of"
                    f" {self.log}:\n{self.tail()}"
                )
            time.sleep(0.05)
        return ""

    def stop(self, timeout_s: float = 5.0) -> int:
        """End the process: SIGTERM, then SIGKILL for its whole group; return its exit code."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()

    def tail(self) -> str:
        """Return the last lines of the log, indented."""
        lines = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return "\n".join(f"  {line}" for line in lines)
