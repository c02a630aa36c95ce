"""Ctrl-C, SIGTERM and SIGHUP during a rental: they end the block, never the deletion after it.

In a `deferred` part they wait for its end. Elsewhere the first one raises `Stopped`; each later
one, and any after `unstoppable`, only logs why it takes time. Only the main thread can install
handlers; in others the block runs without them.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from crane_x7_remote.system import signals

logger = logging.getLogger(__name__)


class Stopped(KeyboardInterrupt):
    """A signal ended the block; the message names it."""


class StopSignals:
    """The handlers of one rental."""

    def __init__(self, why_it_takes_time: str) -> None:
        self._why = why_it_takes_time
        self._stoppable = True
        self._waiting: str | None = None
        self._deferring = False
        self._before: dict[signal.Signals, Any] = {}

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals within the block, as before after it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        for each in signals.ending():
            self._before[each] = signal.signal(each, self._receive)
        try:
            yield
        finally:
            for each, handler in self._before.items():
                signal.signal(each, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Let a signal wait until the end of the block, then raise Stopped."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self._waiting is not None:
            self._stoppable = False
            raise Stopped(self._waiting)

    def unstoppable(self) -> None:
        """From now on a signal stops nothing."""
        self._stoppable = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        name = signal.Signals(number).name
        if not self._stoppable:
            logger.warning("%s: %s", name, self._why)
        elif self._deferring:
            self._waiting = name
            logger.warning("%s: ending after the answer to the order", name)
        else:
            self._stoppable = False
            raise Stopped(name)
