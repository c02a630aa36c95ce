"""Memory that ran out. An error → whether it means that, and how much was needed until then."""

from __future__ import annotations

import resource
from typing import Final

import torch

ALLOCATION: Final = "DefaultCPUAllocator"
"""What torch names where a CPU's memory runs out: a RuntimeError without a class of its own."""


def ran_out(error: BaseException) -> bool:
    """Whether it means that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or ALLOCATION in str(error)


def need(error: BaseException) -> str:
    """Return how much was needed, as measured."""
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    if not torch.cuda.is_available():
        held = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return f"{said}; {held / 1e9:.1f} GB were needed until then"
    peak, (_, whole) = torch.cuda.max_memory_allocated(), torch.cuda.mem_get_info()
    return f"{said}; {peak / 1e9:.1f} GB were needed until then, the GPU has {whole / 1e9:.1f} GB"
