"""Which signals end a command in order."""

from __future__ import annotations

import signal

from crane_x7_remote.system import signals


def test_a_lost_session_ends_a_command_unless_nohup_started_it() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        assert signal.SIGHUP in signals.ending()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert signals.ending() == (signal.SIGTERM, signal.SIGINT)
    finally:
        signal.signal(signal.SIGHUP, before)
