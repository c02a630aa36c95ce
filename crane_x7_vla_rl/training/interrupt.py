"""SIGTERM and Ctrl-C. Signal → a flag that the loop reads between two updates.

Before training has begun there is nothing to save, and the process ends at once.
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Final, Self

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """Catches the signals while it is entered; only the main thread can."""

    def __init__(self) -> None:
        self.wanted = False
        """Whether somebody asked to stop."""
        self.training = False
        """Set by the loop, once it reads `wanted`."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._catch) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.wanted = True
        if not self.training:
            raise SystemExit(0)
