"""Single keys from a terminal, or characters from a pipe. Standard input → one key at a time.

The terminal is restored at the end of the block, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from collections import deque
from collections.abc import Iterator
from typing import IO, Final

ESCAPE: Final = "\x1b"
READ_BYTES: Final = 256


class Keys:
    """What was typed and not yet taken."""

    def __init__(self, descriptor: int | None) -> None:
        """None: there is no input at all."""
        self._descriptor = descriptor
        self._typed: deque[str] = deque()
        self.has_ended = descriptor is None
        """Whether there will be no more keys: the pipe was closed, or the terminal is gone."""

    def next(self, timeout_s: float = 0.0) -> str | None:
        """Return the next key; None if none came within `timeout_s`.

        A key that sends several characters, such as an arrow, is ESCAPE.
        """
        if not self._typed:
            self.fill(timeout_s)
        return self._typed.popleft() if self._typed else None

    def fill(self, timeout_s: float) -> None:
        """Wait for keys and keep them; afterwards `has_ended` is known."""
        if self._descriptor is None or self.has_ended:
            return
        try:
            if not select.select([self._descriptor], [], [], timeout_s)[0]:
                return
            typed = os.read(self._descriptor, READ_BYTES)
        except (OSError, ValueError):
            typed = b""
        if not typed:
            self.has_ended = True
        elif typed.startswith(ESCAPE.encode()):
            self._typed.append(ESCAPE)
        else:
            self._typed.extend(typed.decode(errors="ignore"))


@contextlib.contextmanager
def typed_keys(stream: IO[str] | None = None) -> Iterator[Keys]:
    """Yield the keys of `stream`, by default standard input."""
    stream = stream or sys.stdin
    try:
        descriptor = None if stream is None else stream.fileno()
    except (OSError, ValueError):  # closed, or no file
        descriptor = None
    if descriptor is None or not os.isatty(descriptor):
        yield Keys(descriptor)
        return
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor, termios.TCSANOW)
        mode = termios.tcgetattr(descriptor)
        mode[0] &= ~termios.IXON  # Ctrl-S would stop the output, and with it whoever writes
        termios.tcsetattr(descriptor, termios.TCSANOW, mode)
        yield Keys(descriptor)
    finally:
        with contextlib.suppress(termios.error, OSError):  # the terminal may be gone
            termios.tcsetattr(descriptor, termios.TCSANOW, before)
