"""Out of memory. An error → whether it means that, and how much memory was in use."""

from __future__ import annotations

import resource
from typing import Final

import torch

ALLOCATION: Final = "DefaultCPUAllocator"
"""In torch's message when a CPU's memory runs out: a RuntimeError without its own class."""

OTHERS: Final = 2_000_000_000
"""Bytes above which other processes are named; this process's own context holds up to 1 GB."""


def ran_out(error: BaseException) -> bool:
    """Whether the error means that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or ALLOCATION in str(error)


def need(error: BaseException) -> str:
    """Return the error's text with the memory that was in use, as measured."""
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    if not torch.cuda.is_available():
        held = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return f"{said}; {held / 1e9:.1f} GB were in use"
    peak, (free, whole) = torch.cuda.max_memory_allocated(), torch.cuda.mem_get_info()
    used = f"{peak / 1e9:.1f} GB of the GPU's {whole / 1e9:.1f} GB were in use"
    others = whole - free - torch.cuda.memory_reserved()
    if others < OTHERS:
        return f"{said}; {used}"
    return f"{said}; {used}, and other processes hold {others / 1e9:.1f} GB (see `nvidia-smi`)"
