"""A child process that ends when its parent dies for any reason. Linux only."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> Callable[[], None]:
    """Return a `preexec_fn`: a new child then receives SIGTERM when `parent` dies.

    The thread that starts the child counts as the parent: start the child from a thread that keeps
    running.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return prepare
