"""Which processes run, and below which; one that is only left to be reaped has ended."""

from __future__ import annotations

import psutil


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and not lost."""
    return [child.pid for child in psutil.Process(pid).children()]


def descendants(pid: int) -> list[int]:
    """Return all processes below one."""
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
