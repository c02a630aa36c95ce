"""How this process's allocator treats freed memory. Linux with glibc; elsewhere nothing changes."""

from __future__ import annotations

import contextlib
import ctypes
from typing import Final

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
KEPT_BYTES: Final = 32 * 1024 * 1024
"""Most that mallopt(3) takes for M_MMAP_THRESHOLD on 64-bit machines."""


def keep_freed_memory() -> None:
    """Keep blocks of up to KEPT_BYTES after they are freed, instead of returning them.

    A message with an image is copied several times on its way. Each copy of a megabyte that comes
    fresh from the kernel costs 225 page faults.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * KEPT_BYTES)
