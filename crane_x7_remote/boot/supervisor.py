"""Processes that boot starts: their output, their end, and restarted daemons.

A `Child` is one running process. A `Daemon` describes how to start one, when it is ready and why it
ended. A `Service` keeps a daemon running and reports to the `StatusBoard`. All end with boot.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Protocol

from crane_x7_remote.boot.account import Account
from crane_x7_remote.boot.status_board import StatusBoard
from crane_x7_remote.errors import RemoteError
from crane_x7_remote.system.output import LineSplitter
from crane_x7_remote.system.parent_death import die_with
from crane_x7_vla_rl.log_text import shown

logger = logging.getLogger(__name__)

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0
STEADY_S = 60.0
"""A daemon that ran for this long is restarted after the shortest delay."""
FAILED_START_S = 3.0
"""Grace for a daemon that did not become ready."""
KEPT_LINES = 40
LOGGED_CHARACTERS = 1000
"""Longest logged line."""
LAST_WORDS_S = 0.5


def backoff_s(failures: int) -> float:
    """Return the delay before the next start after `failures` failures in a row."""
    return float(min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** max(0, failures - 1)))


def how_it_ended(code: int, last_lines: Sequence[str]) -> str:
    """Return exit code and last lines, or only the signal, which no earlier line explains."""
    for number in signal.Signals:
        if code == 128 + number:
            return f"was ended by {number.name}"
    said = " / ".join(shown(line) for line in last_lines[-3:])
    return f"ended with {code}: {said or 'no message'}"


class _Output(asyncio.Protocol):
    """A pipe whose lines go to boot's log; the last ones are kept."""

    def __init__(self, name: str, level: int) -> None:
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._name = name
        self._level = level
        self._cutter = LineSplitter()
        self._ended = asyncio.Event()
        self._transport: asyncio.ReadTransport | None = None

    async def open(self) -> int:
        """Return the end to write to."""
        source, sink = os.pipe()
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.connect_read_pipe(lambda: self, os.fdopen(source, "rb"))
        return sink

    async def finish(self) -> None:
        """Read to the end, or briefly if other processes still hold the pipe; then close it."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), LAST_WORDS_S)
        self._keep(self._cutter.end())
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Log whole lines, keep the rest."""
        self._keep(self._cutter.feed(data))

    def eof_received(self) -> None:
        """Handle the end of the stream."""
        self._ended.set()

    def _keep(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.lines.append(line)
            logger.log(self._level, "%s: %s", self._name, shown(line, LOGGED_CHARACTERS))


class Child:
    """One running process."""

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        leads_group: bool,
        output: _Output | None,
    ) -> None:
        """Use `start`."""
        self.name = name
        self._process = process
        self._leads_group = leads_group
        self._output = output

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
        """Start `argv`. With `log_level` its output goes to boot's log, else to boot's own output.

        `own_session` keeps a terminal's Ctrl-C from it; `prepare` is called in the child before
        it executes its program. Raises OSError.
        """
        die_with_us = die_with(os.getpid())

        def before() -> None:
            die_with_us()
            if prepare is not None:
                prepare()

        output = None if log_level is None else _Output(name, log_level)
        sink = None if output is None else await output.open()
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=None if sink is None else asyncio.subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=dict(env),
                start_new_session=own_session,
                preexec_fn=before,
                **(account.popen if account is not None else {}),
            )
        finally:
            if sink is not None:
                os.close(sink)
        return cls(name, process, own_session, output)

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
        return [] if self._output is None else list(self._output.lines)

    async def wait(self) -> int:
        """Wait until it has ended and return its exit code; 128 + n for signal n."""
        code = await self._process.wait()
        return code if code >= 0 else 128 - code

    async def stop(self, until_s: float) -> int:
        """Send SIGTERM; at `until_s` (monotonic clock) send SIGKILL to its whole group."""
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), max(0.0, until_s - time.monotonic()))
        if self.is_running:
            logger.warning("%s did not end after SIGTERM; sending SIGKILL", self.name)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._leads_group:
                os.killpg(self.pid, signal.SIGKILL)
            elif self.is_running:
                self._process.kill()
        code = await self.wait()
        await self.finish_output()
        return code

    async def finish_output(self) -> None:
        """Read its last lines after it has ended."""
        if self._output is not None:
            await self._output.finish()


class Daemon(Protocol):
    """How to run one daemon."""

    part: str
    """Its name on the board."""

    async def launch(self) -> Child:
        """Start the process. Raises RemoteError."""

    async def ready(self, child: Child) -> str:
        """Return a line about it when it serves. Raises RemoteError at its own deadline."""

    def explain_end(self, code: int, last_lines: Sequence[str]) -> RemoteError:
        """Return why it ended; it should run for ever."""


class Service:
    """One daemon, kept running."""

    def __init__(self, daemon: Daemon, board: StatusBoard) -> None:
        self._daemon = daemon
        self._board = board
        self._child: Child | None = None

    async def start(self) -> None:
        """Start the daemon and wait until it serves. Raises RemoteError."""
        part = self._daemon.part
        if self._board[part].state == "off":
            self._board.set(part, "starting", "not ready yet")
        self._child = child = await self._daemon.launch()
        detail = await self._unless_ended(child, self._daemon.ready(child))
        self._board.set(part, "up", detail)

    async def keep(self) -> None:
        """Restart it whenever it ends; runs until cancelled."""
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
                self._board.set(self._daemon.part, "down", str(failure), "boot retries")
                await self._child.stop(time.monotonic() + FAILED_START_S)

    async def stop(self, until_s: float) -> None:
        """End the daemon by `until_s` on the monotonic clock."""
        if self._child is not None and self._child.is_running:
            code = await self._child.stop(until_s)
            logger.info("%s: %s ended with %d", self._daemon.part, self._child.name, code)

    async def _unless_ended(self, child: Child, ready: Coroutine[None, None, str]) -> str:
        """Return the result of `ready`; if `child` ends first, raise the daemon's explanation."""
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
