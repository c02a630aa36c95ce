"""The signals that end a command in order."""

from __future__ import annotations

import signal


def ending() -> tuple[signal.Signals, ...]:
    """Return SIGTERM, SIGINT and SIGHUP; without SIGHUP where `nohup` has it ignored.

    A lost ssh session and a closed terminal send SIGHUP, often twice: the kernel, then the shell.
    """
    signals = (signal.SIGTERM, signal.SIGINT)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        return signals
    return (*signals, signal.SIGHUP)
