"""Child processes that follow the loop: a dashboard, a recorder. Ticks → a pipe for each child.

The loop's thread only puts a reference into a bounded queue. One thread packs, and each child has
its own thread for its pipe, so that a child that does not read delays nobody: its oldest messages
are dropped and counted. A child's death is logged once, and the loop continues. Children know
nothing of the loop's keyboard: they end when their input does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Any, Final

from crane_x7_remote.inference import feed
from crane_x7_remote.inference.feed import Tick, TickEncoder
from crane_x7_remote.system.output import LineSplitter, shown
from crane_x7_remote.system.parent_death import die_with

logger = logging.getLogger(__name__)

QUEUED_TICKS: Final = 64
"""Ticks that wait to be packed; the loop's thread drops further ones."""
QUEUED_MESSAGES: Final = 64
QUEUED_BYTES: Final = 32 * 1024 * 1024
"""What waits for one child; the oldest messages beyond either limit are dropped."""
SECOND_S: Final = 1.0
END_S: Final = 2.0
"""How long a child may take to end after a signal."""
READ_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class FeedCommand:
    """A child to start."""

    name: str
    """Precedes its lines in the log."""
    argv: tuple[str, ...]
    """Its program and arguments; it reads the feed from its standard input."""
    grace_s: float = 5.0
    """How long it may work on after the feed has ended."""
    environment: Mapping[str, str] | None = field(default=None, repr=False)
    """Its environment, with secrets; None: this process's."""


def own_command(*words: str) -> tuple[str, ...]:
    """Return the program and arguments of a command of this package."""
    return (sys.executable, "-m", "crane_x7_remote", *words)


class Feeds:
    """A context manager that starts the children, and ends them with a `bye`."""

    def __init__(
        self,
        commands: Sequence[FeedCommand],
        hello: Mapping[str, Any],
        snapshot: Callable[[], Mapping[str, Any]],
    ) -> None:
        """`snapshot` returns the metrics of a `second`; it is called on a separate thread."""
        self._children = [_Child(command) for command in commands]
        self._hello = hello
        self._snapshot = snapshot
        self._ticks: queue.SimpleQueue[tuple[Tick, float] | Mapping[str, Any] | None] = (
            queue.SimpleQueue()
        )
        self._encoder = TickEncoder()
        self.dropped_ticks = 0
        """Ticks that the packing thread was too slow for."""
        self._thread = threading.Thread(target=self._pack_until_closed, name="feed", daemon=True)

    def __enter__(self) -> Feeds:
        if self._children:
            first = feed.pack(self._hello)
            for child in self._children:
                child.start(first)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def offer(self, tick: Tick) -> None:
        """Pass a tick on without waiting; called on the loop's thread."""
        if self._ticks.qsize() >= QUEUED_TICKS:
            self.dropped_ticks += 1
            return
        self._ticks.put((tick, time.time()))

    def order(self, word: str, success: bool | None = None) -> None:
        """Tell a recorder to start, stop or discard an episode, in order with the ticks; `success`
        is how a stopped one was judged."""
        if self._children:
            self._ticks.put({"kind": "record", "word": word, "success": success})

    @property
    def is_wanted(self) -> bool:
        """Whether there is any child."""
        return bool(self._children)

    def counts(self) -> dict[str, int]:
        """Return the dropped messages by the child's name."""
        return {child.name: child.dropped + self.dropped_ticks for child in self._children}

    def close(self) -> None:
        """Say bye, and wait until each child has ended; end those that take too long."""
        if not self._children or self._thread.ident is None:
            return
        self._ticks.put(None)
        self._thread.join(END_S)
        closing = [
            threading.Thread(target=child.close, name=f"close {child.name}")
            for child in self._children
        ]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()

    def _pack_until_closed(self) -> None:
        due_s = time.monotonic()
        while True:
            with contextlib.suppress(queue.Empty):
                item = self._ticks.get(timeout=max(0.0, due_s - time.monotonic()))
                if item is None:
                    self._hand_out({"kind": "bye"})
                    return
                if isinstance(item, tuple):
                    item = self._encoder.message(*item)
                self._hand_out(item)
            if time.monotonic() >= due_s:
                due_s = time.monotonic() + SECOND_S
                # The loop's threads count meanwhile: a dictionary may grow while it is copied.
                with contextlib.suppress(RuntimeError):
                    self._hand_out({"kind": "second", "metrics": self._snapshot()})

    def _hand_out(self, message: Mapping[str, Any]) -> None:
        packed = feed.pack(message)
        for child in self._children:
            child.put(packed)


class _Child:
    """One process, the messages that wait for it, and its threads."""

    def __init__(self, command: FeedCommand) -> None:
        self.name = command.name
        self.dropped = 0
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._is_closing = self._is_dead = False
        self._writer = threading.Thread(
            target=self._write_until_closed, name=f"to {self.name}", daemon=True
        )
        self._reader = threading.Thread(target=self._log, name=f"from {self.name}", daemon=True)

    def start(self, first: bytes) -> None:
        """Start the process; `first` is the message that is never dropped."""
        command = self._command
        self._process = subprocess.Popen(
            command.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            env=None if command.environment is None else dict(command.environment),
            start_new_session=True,  # Ctrl-C ends the loop, in order, and then this process
            preexec_fn=die_with(os.getpid()),
        )
        self._first = first
        self._reader.start()
        self._writer.start()

    def put(self, message: bytes) -> None:
        """Let the message wait for its turn; drop the oldest ones if too much waits."""
        with self._changed:
            if self._is_dead:
                return
            self._waiting.append(message)
            self._waiting_bytes += len(message)
            while len(self._waiting) > QUEUED_MESSAGES or self._waiting_bytes > QUEUED_BYTES:
                self._waiting_bytes -= len(self._waiting.popleft())
                self.dropped += 1
            self._changed.notify()

    def close(self) -> None:
        """Wait until the process has read everything and ended; end it if it takes too long."""
        process = self._process
        if process is None:
            return
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._end(process)
        self._writer.join(END_S)
        self._reader.join(END_S)
        if self.dropped:
            logger.warning("%s was too slow for %d messages", self.name, self.dropped)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self._command.grace_s)
            return
        logger.warning("%s did not end within %g s; ending it", self.name, self._command.grace_s)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
            return
        process.kill()
        process.wait()

    # --- own threads -----------------------------------------------------------------------------

    def _write_until_closed(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        pipe = self._process.stdin
        try:
            message: bytes | None = self._first
            while message is not None:
                _write(pipe, message)
                message = self._next()
            pipe.close()
        except OSError:
            self._note_death(self._process)

    def _next(self) -> bytes | None:
        """Return the oldest message, when there is one; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            if not self._waiting:
                return None
            message = self._waiting.popleft()
            self._waiting_bytes -= len(message)
            return message

    def _note_death(self, process: subprocess.Popen[bytes]) -> None:
        with self._changed:
            self._is_dead = True
            self._waiting.clear()
            was_closing = self._is_closing
        with contextlib.suppress(OSError):
            assert process.stdin is not None
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
        if not was_closing:
            logger.error(
                "%s has ended (exit code %s); the loop continues without it",
                self.name,
                process.returncode,
            )

    def _log(self) -> None:
        """Log what the process says."""
        assert self._process is not None
        assert self._process.stdout is not None
        splitter = LineSplitter()
        with contextlib.suppress(OSError, ValueError), self._process.stdout as stream:
            while chunk := stream.read(READ_BYTES):
                for line in splitter.feed(chunk):
                    self._log_line(line)
        for line in splitter.end():
            self._log_line(line)

    def _log_line(self, line: str) -> None:
        if line.strip():
            logger.info("%s: %s", self.name, shown(line.strip()))


def _write(pipe: IO[bytes], message: bytes) -> None:
    """Write everything to an unbuffered pipe."""
    rest = memoryview(message)
    while rest:
        rest = rest[pipe.write(rest) or 0 :]
