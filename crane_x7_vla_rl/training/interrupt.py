"""Signals to a training. Signal → a flag that the loop reads between two updates.

SIGTERM and Ctrl-C save and stop. SIGHUP, which a lost ssh session sends, saves and continues.
Before training has begun there is nothing to save: SIGTERM and Ctrl-C end the process immediately,
SIGHUP is ignored.
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Final, Self

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupt:
    """Catches the signals while it is entered; only the main thread can."""

    def __init__(self) -> None:
        self.wanted = False
        """Whether a signal requested a stop."""
        self.training = False
        """Set by the loop when it begins to read `wanted`."""
        self._hung_up = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup
            self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take_hangup(self) -> bool:
        """Return whether a SIGHUP came since the last call."""
        came, self._hung_up = self._hung_up, False
        return came

    def _catch(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGHUP:
            self._hung_up = True
            return
        self.wanted = True
        if not self.training:
            raise SystemExit(0)
