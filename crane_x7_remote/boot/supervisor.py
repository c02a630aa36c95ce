"""Processes that boot starts: their output, their end, and a daemon that comes back.

A `Child` is one running process; a `Daemon` says how to start one, when it is ready and why it
ended; a `Service` keeps a daemon running and tells the board how it is. None outlives boot.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Protocol

from crane_x7_remote.boot.account import Account
from crane_x7_remote.boot.board import Board
from crane_x7_remote.errors import RemoteError
from crane_x7_remote.parent_death import die_with

logger = logging.getLogger(__name__)

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0
STEADY_S = 60.0
"""A daemon that ran for so long starts again without further delay when it ends."""
FAILED_START_S = 3.0
"""Grace for a daemon that did not become ready."""
KEPT_LINES = 40


def backoff_s(failures: int) -> float:
    """Return how long to wait before the next start after so many failures in a row."""
    return float(min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** max(0, failures - 1)))


def how_it_ended(code: int, last_lines: Sequence[str]) -> str:
    """Return exit code and last words, or the signal: what came before that explains nothing."""
    if code > 128:
        return f"was ended by {signal.Signals(code - 128).name}"
    return f"ended with {code}: {' / '.join(last_lines[-3:]) or 'no message'}"


class Child:
    """One running process."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, leads_group: bool) -> None:
        self.name = name
        self._process = process
        self._leads_group = leads_group
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._reader: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        account: Account | None = None,
        log_level: int | None = None,
        own_session: bool = True,
        prepare: Callable[[], None] | None = None,
    ) -> Child:
        """Start `argv`. With `log_level` its output becomes our log, else it has our own output.

        `own_session` keeps a terminal's Ctrl-C from it; `prepare` is called in the child before
        it executes its program. Raises OSError.
        """
        die_with_us = die_with(os.getpid())

        def before() -> None:
            die_with_us()
            if prepare is not None:
                prepare()

        pipe = asyncio.subprocess.PIPE if log_level is not None else None
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL if pipe is not None else None,
            stdout=pipe,
            stderr=asyncio.subprocess.STDOUT if pipe is not None else None,
            env=dict(env),
            start_new_session=own_session,
            preexec_fn=before,
            **(account.popen if account is not None else {}),
        )
        child = cls(name, process, own_session)
        if log_level is not None and process.stdout is not None:
            child._reader = asyncio.create_task(child._read(process.stdout, log_level))
        return child

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    @property
    def last_lines(self) -> list[str]:
        """The end of its output."""
        return list(self._lines)

    async def wait(self) -> int:
        """Return its exit code once it has ended; 128 + n for signal n."""
        code = await self._process.wait()
        return code if code >= 0 else 128 - code

    async def stop(self, until_s: float) -> int:
        """SIGTERM; SIGKILL at `until_s` (monotonic clock) for it and all its group."""
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), max(0.0, until_s - time.monotonic()))
        if self.is_running:
            logger.warning("%s did not end by SIGTERM; killing it", self.name)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._leads_group:
                os.killpg(self.pid, signal.SIGKILL)
            elif self.is_running:
                self._process.kill()
        return await self.wait()

    async def finish_output(self) -> None:
        """Wait until its last words are read; a process of its own may hold its output longer."""
        if self._reader is not None:
            await asyncio.wait({self._reader}, timeout=0.5)

    async def _read(self, stream: asyncio.StreamReader, level: int) -> None:
        rest = b""
        while chunk := await stream.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                text = line.decode(errors="replace").rstrip()
                self._lines.append(text)
                logger.log(level, "%s: %s", self.name, text)


class Daemon(Protocol):
    """How to run one daemon."""

    part: str
    """Its name on the board."""

    async def launch(self) -> Child:
        """Start the process. Raises RemoteError."""

    async def ready(self, child: Child) -> str:
        """Return a line about it once it serves. Raises RemoteError at its own deadline."""

    def explain_end(self, code: int, last_lines: Sequence[str]) -> RemoteError:
        """Return why it ended, for a process that should never end."""


class Service:
    """One daemon, kept running."""

    def __init__(self, daemon: Daemon, board: Board) -> None:
        self._daemon = daemon
        self._board = board
        self._child: Child | None = None

    async def start(self) -> None:
        """Start the daemon and wait until it serves. Raises RemoteError."""
        part = self._daemon.part
        if self._board[part].state == "off":
            self._board.set(part, "starting", "being started")
        self._child = child = await self._daemon.launch()
        detail = await self._unless_ended(child, self._daemon.ready(child))
        self._board.set(part, "up", detail)

    async def keep(self) -> None:
        """Start it again whenever it ends; runs until it is cancelled."""
        failures = 0
        while self._child is not None:
            began_s = time.monotonic()
            code = await self._child.wait()
            await self._child.finish_output()
            failures = 1 if time.monotonic() - began_s > STEADY_S else failures + 1
            delay_s = backoff_s(failures)
            error = self._daemon.explain_end(code, self._child.last_lines)
            self._board.set(self._daemon.part, "down", str(error), f"next start in {delay_s:g} s")
            await asyncio.sleep(delay_s)
            try:
                await self.start()
            except RemoteError as failure:
                self._board.set(self._daemon.part, "down", str(failure), "it is tried again")
                await self._child.stop(time.monotonic() + FAILED_START_S)

    async def stop(self, until_s: float) -> None:
        """End the daemon by `until_s` on the monotonic clock."""
        if self._child is not None and self._child.is_running:
            code = await self._child.stop(until_s)
            logger.info("%s: %s ended with %d", self._daemon.part, self._child.name, code)

    async def _unless_ended(self, child: Child, ready: Coroutine[None, None, str]) -> str:
        """Return what `ready` returns; raises the daemon's explanation if `child` ends first."""
        waiting = asyncio.ensure_future(ready)
        ended = asyncio.ensure_future(child.wait())
        try:
            await asyncio.wait({waiting, ended}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                await child.finish_output()
                raise self._daemon.explain_end(ended.result(), child.last_lines)
            return waiting.result()
        finally:
            waiting.cancel()
            ended.cancel()
            await asyncio.gather(waiting, ended, return_exceptions=True)
