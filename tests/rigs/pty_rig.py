"""A process on a pseudo-terminal: what it shows, keys for it, whether the terminal is restored."""

from __future__ import annotations

import os
import select
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any


class OnTerminal:
    """A context manager that kills the process at its end."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
        self._ours, theirs = os.openpty()
        self._theirs = theirs
        """Stays open, so that its attributes can be read after the end."""
        self.before = termios.tcgetattr(theirs)
        size = {"COLUMNS": "100", "LINES": "40", "TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**os.environ, **(environ or {}), **size},
        )  # fmt: skip
        self.shown = b""
        self._seen = 0

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def read(self, wait_s: float = 0.0) -> bytes:
        """Read what is there; a process whose output nobody reads stops."""
        while select.select([self._ours], [], [], wait_s)[0]:
            self.shown += os.read(self._ours, 1 << 16)
            wait_s = 0.0
        return self.shown

    def hold_output(self, held: bool) -> None:
        """Let the terminal take nothing more, as after Ctrl-S; or resume."""
        termios.tcflow(self._theirs, termios.TCOOFF if held else termios.TCOON)

    def wait_for(self, part: str, timeout_s: float = 60.0) -> None:
        """Read until `part` is shown, after what an earlier call has found."""
        deadline_s = time.monotonic() + timeout_s
        while (at := self.shown.find(part.encode(), self._seen)) < 0:
            assert time.monotonic() < deadline_s, f"no {part!r} in {self.shown[-1500:]!r}"
            assert self.process.poll() is None or self.read(), self.shown.decode(errors="replace")
            self.read(0.2)
        self._seen = at + len(part.encode())

    def wait_end(self, timeout_s: float = 60.0) -> int:
        """Read until the process ends; return its exit code."""
        deadline_s = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline_s, self.shown[-2000:]
            self.read(0.1)
        self.read()
        return self.process.returncode

    @property
    def is_restored(self) -> bool:
        """Whether echo and line mode are as before."""
        attributes: list[Any] = termios.tcgetattr(self._theirs)
        return attributes[3] == self.before[3]

    def __enter__(self) -> OnTerminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        os.close(self._ours)
        os.close(self._theirs)
