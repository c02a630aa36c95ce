"""The duties of process 1 in a container: reap orphans, pass signals on.

The image has tini for this. With another entrypoint, boot may be process 1; then it forks, and the
parent does this work.
"""

from __future__ import annotations

import os
import signal
import sys

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def become_init_if_first() -> None:
    """Fork if this is process 1 and return in the child; else return at once.

    Call it before any thread is started. Process 1 ends with the child's exit code.
    """
    if os.getpid() != 1:
        return
    watched = {*PASSED_ON, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)
        return
    while True:
        number = signal.sigwait(watched)
        if number == signal.SIGCHLD:
            _reap(child)
        else:
            os.kill(child, number)


def _reap(child: int) -> None:
    """Reap every ended process; exit when `child` has ended."""
    ended, status = os.waitpid(-1, os.WNOHANG)
    while ended != 0:
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
