"""A terminal that a process writes to, and that may go away, as that of a lost ssh session."""

from __future__ import annotations

import os
import select


class Terminal:
    """A pseudo-terminal; `name` is for the process, the other end is ours."""

    def __init__(self) -> None:
        self._ours, self._theirs = os.openpty()
        self.name = os.ttyname(self._theirs)
        self.shown = b""

    def read(self) -> bytes:
        """Return all that it has shown; who does not read it, stops the process in time."""
        while select.select([self._ours], [], [], 0)[0]:
            self.shown += os.read(self._ours, 1 << 16)
        return self.shown

    def lose(self) -> None:
        """Close our end, as sshd does; the process's writes fail from now on."""
        os.close(self._theirs)
        os.close(self._ours)


def take(name: str) -> None:
    """Make the terminal this process's standard input, output and error."""
    terminal = os.open(name, os.O_RDWR | os.O_NOCTTY)
    for number in range(3):
        os.dup2(terminal, number)
    os.close(terminal)
