"""Which processes run, and below which; one that is only left to be reaped has ended."""

from __future__ import annotations

import time
from collections.abc import Collection

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


def survivors(pids: Collection[int], within_s: float = 10.0) -> list[int]:
    """Return those that still run after this time; a killed one takes a moment to go."""
    end_s = time.monotonic() + within_s
    while (alive := [pid for pid in pids if is_alive(pid)]) and time.monotonic() < end_s:
        time.sleep(0.02)
    return alive
