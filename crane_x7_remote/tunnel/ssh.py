"""An OpenSSH tunnel to the robot's rosbridge that reconnects whenever it dies. `SshConfig` → a
port.

A failure that a retry cannot mend raises an error. A tunnel counts as up when a WebSocket handshake
with rosbridge has succeeded through it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from crane_x7_remote import settings
from crane_x7_remote.errors import ForwardRefusedError, PeerUnreachableError, SshUnreachableError
from crane_x7_remote.rosbridge.connection import LinkConfig
from crane_x7_remote.system.output import LineSplitter
from crane_x7_remote.system.parent_death import die_with
from crane_x7_remote.tunnel.forward import LISTEN_HOST
from crane_x7_remote.tunnel.probe import probe
from crane_x7_remote.tunnel.ssh_cli import (
    LOGGED_IN,
    NO_SESSION,
    NOTHING_BEHIND,
    PROHIBITED,
    Complaint,
    Patience,
    SshConfig,
    arguments,
    complaint,
)
from crane_x7_vla_rl.log_text import shown

logger = logging.getLogger(__name__)

LOGIN_TIMEOUT_S = 30.0
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 5.0
STEADY_S = 10.0
"""After a tunnel that was up for this long, the delay before a retry starts at its shortest
again."""
PROBE_TIMEOUT_S, PROBE_PAUSE_S = 3.0, 0.25
SETTLE_S = 1.0
"""After a login, sshd may still refuse the request; only after this time is rosbridge reported
missing."""
STOP_TIMEOUT_S = 3.0
LAST_LINES = 20
CHUNK_BYTES = LINE_CHARACTERS = 4096
OWN_FAILURE = 255
"""Exit code of ssh for its own failures; any other belongs to the command."""
ENGLISH = {"LC_ALL": "C"}
"""`ssh_cli` matches OpenSSH's messages, and system errors in them, only in English."""


class SshTunnel:
    """Keeps one tunnel up while `run` runs."""

    def __init__(self, config: SshConfig, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives monotonic seconds."""
        self._config = config
        self._clock = clock
        self._up_since_s: float | None = None
        self.has_session = True
        """Whether a command runs at the other end; see ssh_cli.IDLE_COMMAND."""
        self.times_up = 0
        """How often it has been established."""

    @property
    def is_up(self) -> bool:
        """Whether rosbridge answered through the current connection."""
        return self._up_since_s is not None

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the tunnel up until `stop`.

        Raises, before it was first up: SshAuthError or ForwardRefusedError at once;
        SshUnreachableError or PeerUnreachableError after the timeout. SshHostKeyError at any time.
        """
        deadline_s = self._clock() + self._config.timeout_s
        pause_s = FIRST_BACKOFF_S
        while not stop.is_set():
            why = await self._one_connection(stop, deadline_s)
            if stop.is_set():
                break
            self._judge(why, deadline_s)
            if self._up_since_s is not None and self._clock() - self._up_since_s > STEADY_S:
                pause_s = FIRST_BACKOFF_S
            self._up_since_s = None
            wait_s = pause_s * random.uniform(0.5, 1.0)
            pause_s = min(2 * pause_s, LONGEST_BACKOFF_S)
            logger.warning("down: %s; retry in %.1f s", why.text, wait_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), wait_s)

    def _judge(self, why: Complaint, deadline_s: float) -> None:
        """Raise unless a retry makes sense."""
        is_first = self.times_up == 0
        is_late = is_first and self._clock() >= deadline_s
        is_final = why.patience is Patience.NONE
        if is_final or is_late or (is_first and why.patience is Patience.IF_IT_EVER_WORKED):
            waited = f" (after {self._config.timeout_s:g} s of retries)" if is_late else ""
            raise why.kind(f"{self._config.destination}: {why.text}{waited}")

    async def _one_connection(self, stop: asyncio.Event, deadline_s: float) -> Complaint:
        """Run ssh until it ends, `stop` or the deadline; return why the tunnel is down."""
        config = self._config
        if config.direction == "local" and (taken := _why_taken(config.port)):
            text = (
                f"cannot open {config.opened} ({taken}); end the program that uses it, or choose"
                " another port"
            )
            return Complaint(ForwardRefusedError, text, Patience.IF_IT_EVER_WORKED)
        probe_port = config.port if config.direction == "local" else _free_port()
        ssh = await _Ssh.start(arguments(config, probe_port, self.has_session))
        watcher = asyncio.create_task(self._watch(ssh, probe_port, deadline_s))
        ended = asyncio.create_task(ssh.wait())
        tasks: list[asyncio.Task[Any]] = [watcher, ended, asyncio.create_task(stop.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if watcher.done() and not ended.done():
                return watcher.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await ssh.stop()
        if self.has_session and ssh.has_no_session:
            self.has_session = False
            text = "the account runs no command; without one, images may arrive 40 ms late"
            return Complaint(SshUnreachableError, text)
        return complaint(ssh.lines, config)

    async def _watch(self, ssh: _Ssh, probe_port: int, deadline_s: float) -> Complaint:
        """Detect when the tunnel is up; return only if it does not come up."""
        config = self._config
        login_by_s = self._clock() + LOGIN_TIMEOUT_S
        while not ssh.has_logged_in:
            if self._clock() > login_by_s:
                return Complaint(SshUnreachableError, f"no login within {LOGIN_TIMEOUT_S:g} s")
            await asyncio.sleep(0.02)
        give_up_s = max(deadline_s, self._clock() + SETTLE_S)
        said = ""
        while not await _answers(probe_port):
            if ssh.is_prohibited and config.direction == "local":
                return complaint(ssh.lines, config)
            if ssh.is_prohibited:
                logger.warning("sshd does not allow a check of whether %s answers", config.opened)
                break
            missing = (
                f"logged in, but no rosbridge answers at {config.rosbridge}"
                f" ({ssh.cause or 'no WebSocket server'}); start it, or check its port"
            )
            if self.times_up == 0 and self._clock() > give_up_s:
                return Complaint(PeerUnreachableError, missing)
            if missing != said:  # one line per change
                said = missing
                logger.info("%s", missing)
            await asyncio.sleep(PROBE_PAUSE_S)
        self.times_up += 1
        self._up_since_s = self._clock()
        logger.info("up: rosbridge is at %s", config.opened)
        ended: asyncio.Future[Complaint] = asyncio.get_running_loop().create_future()
        return await ended  # never set: this task is cancelled when ssh ends


async def _answers(port: int) -> bool:
    try:
        await probe(LinkConfig(LISTEN_HOST, port, open_timeout_s=PROBE_TIMEOUT_S))
    except PeerUnreachableError:
        return False
    return True


class _Ssh:
    """One run of OpenSSH's client."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._listener = asyncio.create_task(self._listen())
        self.lines: deque[str] = deque(maxlen=LAST_LINES)
        self.has_logged_in = False
        self.is_prohibited = False
        self.cause: str | None = None
        """Why no server answered at the end of the tunnel."""

    @classmethod
    async def start(cls, words: Sequence[str]) -> _Ssh:
        """Raises SshUnreachableError if the program does not exist."""
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=settings.inherited() | ENGLISH,
                preexec_fn=die_with(os.getpid()),
            )
        except FileNotFoundError as error:
            raise SshUnreachableError(
                f"program {words[0]!r} does not exist; install OpenSSH's client (openssh-client)"
            ) from error
        return cls(process)

    @property
    def has_no_session(self) -> bool:
        """Whether it ended after the login because the remote command ended or was forbidden."""
        code = self._process.returncode
        was_refused = any(NO_SESSION.search(line) for line in self.lines)
        return self.has_logged_in and (was_refused or code in range(OWN_FAILURE))

    async def _listen(self) -> None:
        assert self._process.stderr is not None
        cutter = LineSplitter()
        while chunk := await self._process.stderr.read(CHUNK_BYTES):
            for line in cutter.feed(chunk):
                self._hear(line)
        for line in cutter.end():
            self._hear(line)

    def _hear(self, said: str) -> None:
        line = shown(said.strip(), LINE_CHARACTERS)
        logger.debug("ssh: %s", line)
        self.lines.append(line)
        self.has_logged_in |= LOGGED_IN.search(line) is not None
        self.is_prohibited |= PROHIBITED.search(line) is not None
        if found := NOTHING_BEHIND.search(line):
            self.cause = shown(found[1] or found[2])

    async def wait(self) -> None:
        """Return when it has ended and all its output is read."""
        await self._process.wait()
        await self._listener

    async def stop(self) -> None:
        """End it, with SIGKILL if necessary."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process.returncode is not None:
                break
            # Not with the process's own methods, which may take the exit code from the task that
            # waits.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)
        self._listener.cancel()
        await asyncio.gather(self._listener, return_exceptions=True)


def _why_taken(port: int) -> str | None:
    """Return why no process can listen on a local port, None if it is free.

    Checked before ssh starts: otherwise another program on this port would answer the check for
    rosbridge.
    """
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((LISTEN_HOST, port))
            trial.listen()
        except OSError as error:
            return error.strerror
    return None


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind((LISTEN_HOST, 0))
        return int(trial.getsockname()[1])
