"""The duties of process 1 in a container: reap orphans, pass signals on.

The image has tini for this. If something replaced the image's entrypoint, boot may be process 1
itself; then it forks, and the parent does this work.
"""

from __future__ import annotations

import os
import signal
import sys

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def become_init_if_first() -> None:
    """Return in a child of process 1, or at once if this is not process 1.

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
    """Collect all that ended; exit as soon as `child` has."""
    ended, status = os.waitpid(-1, os.WNOHANG)
    while ended != 0:
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
