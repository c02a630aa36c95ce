"""`train.log`: a run's log in its folder, independent of the terminal.

Log records from the start of the process → kept until the folder is known, then written to it,
line by line. A log that cannot be written (a full disk) never ends a training.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections import deque
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from crane_x7_vla_rl.log_text import DATE_AND_CLOCK, LINE, LineFormatter
from crane_x7_vla_rl.training.errors import exit_code

KEPT: Final = 1000
"""Records that are kept until the folder is known."""


class RunLog(logging.Handler):
    """Takes the process's records while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(LineFormatter(LINE, DATE_AND_CLOCK))
        self._file: int | None = None
        self._waiting: deque[str] = deque(maxlen=KEPT)

    def __enter__(self) -> Self:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        logging.getLogger().removeHandler(self)
        if isinstance(error, Exception):
            known = isinstance(error, OSError) or exit_code(error) is not None
            text = str(error) if known else "".join(traceback.format_exception(error)).rstrip()
            self.tell(__name__, f"the run ends with an error: {text}", logging.ERROR)
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def open(self, path: Path) -> None:
        """Write to this file from now on, and first what was kept."""
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        while self._waiting:
            self._write(self._waiting.popleft())

    def tell(self, name: str, text: str, level: int = logging.INFO) -> None:
        """Write a message of the logger `name` here alone, not to the terminal."""
        make = logging.getLogRecordFactory()
        record = make(name, level, __file__, 0, text, None, None)
        record.many_lines = True
        self.handle(record)

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        text = self.format(record)
        if self._file is None:
            self._waiting.append(text)
        else:
            self._write(text)

    def _write(self, text: str) -> None:
        if self._file is not None:
            with suppress(OSError):
                os.write(self._file, f"{text}\n".encode(errors="replace"))
