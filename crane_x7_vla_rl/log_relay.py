"""Log of a simulation's process → the log of the process that started it.

Logging is configured in the latter only. Lines travel with the next answer; `repeat` logs a text
once, however many processes say it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

SOURCE: Final = "crane_x7_vla_rl.sim"
logger = logging.getLogger(__name__)

Line = tuple[int, str]
"""Level and text."""


class LogCollector(logging.Handler):
    """Keeps the lines of this process's simulation until they are taken."""

    def __init__(self) -> None:
        """Receive all that the package's loggers say from now on, from level INFO."""
        super().__init__(logging.INFO)
        self._lines: list[Line] = []
        source = logging.getLogger(SOURCE)
        source.addHandler(self)
        source.setLevel(logging.INFO)
        source.propagate = False  # nobody configured the root logger of this process

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        self._lines.append((record.levelno, record.getMessage()))

    def take(self) -> list[Line]:
        """Return the lines since the last call."""
        taken, self._lines = self._lines, []
        return taken


class LogRepeater:
    """Logs the lines of several processes, each text once."""

    def __init__(self) -> None:
        self._said: set[Line] = set()

    def repeat(self, lines: Iterable[Line]) -> None:
        """Log the lines that are new."""
        for line in lines:
            if line not in self._said:
                self._said.add(line)
                logger.log(line[0], "%s", line[1])
