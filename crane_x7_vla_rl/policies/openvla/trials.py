"""Try each kernel on small inputs before it is used. Kernel, shape, device → whether it runs.

A kernel that does not compile or run, or computes something else, loses its place to torch's
operations for that shape alone; one log line says which and why. A verdict stands for the life of
the process. A trial waits for the device, which a stream in capture cannot: a shape that comes
first during a capture uses torch's operations and is tried at its next call outside. `Replay` runs
each function before it captures it, so that its shapes are known by then.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

LEAST_LIMIT: Final = 1e-4
"""Allowed difference relative to the largest value; float32 sums in another order need 1e-6."""
DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)
"""Kernels compute in float32, so float64 would lose digits."""
LONGEST_REASON: Final = 300
"""Characters of an error that the log repeats; a compiler's message can take pages."""


class KernelError(Exception):
    """A kernel computes something else than torch does."""


class Trials:
    """Verdicts so far."""

    def __init__(self) -> None:
        self._verdicts: dict[Hashable, bool] = {}

    def passed(
        self, name: str, shape: Hashable, device: torch.device, attempt: Callable[[], None]
    ) -> bool:
        """Whether the kernel `name` runs for `shape`; `attempt` runs once and raises if not.

        Raises torch.OutOfMemoryError, which says nothing about the kernel.
        """
        key = (name, shape, device)
        known = self._verdicts.get(key)
        if known is not None:
            return known
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return False
        self._verdicts[key] = verdict = _try(name, shape, device, attempt)
        return verdict


def _try(name: str, shape: Hashable, device: torch.device, attempt: Callable[[], None]) -> bool:
    try:
        attempt()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler or driver raises, slower code takes over
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        logger.warning(
            "Triton kernel %s is not used on %s for %s, torch's operations run instead:"
            " %s: %s; is a C compiler installed, and does this Triton fit this torch?",
            name, device, shape, type(error).__name__, reason,
        )  # fmt: skip
        return False
    return True


@lru_cache
def kernels_in(module: str) -> Any:
    """Return the module with Triton kernels, or None if the Triton that is installed cannot define
    them; one log line says why. Without Triton, as on Windows and macOS, there is none."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever another version of Triton raises, slower code takes over
        if not (isinstance(error, ModuleNotFoundError) and error.name == "triton"):
            logger.warning(
                "no Triton kernels of %s, torch's operations run instead: %s: %s; does this Triton"
                " fit this torch?",
                module.rpartition(".")[2], type(error).__name__, error,
            )  # fmt: skip
        return None


def require_close(ours: Tensor, theirs: Tensor) -> None:
    """Raise KernelError where `ours` differs from `theirs` by more than rounding."""
    epsilon = torch.finfo(ours.dtype).eps
    difference = float((ours.double() - theirs.double()).abs().max())
    limit = max(LEAST_LIMIT, 4 * epsilon) * max(1.0, float(theirs.abs().max()))
    if not difference <= limit:
        raise KernelError(f"a result differs by {difference:.3g} from torch's, limit {limit:.3g}")


def sample(like: Tensor, *size: int) -> Tensor:
    """Return values from −1 to 1 that hardly repeat, without a random generator's state."""
    count = torch.Size(size).numel()
    at = torch.arange(count, device=like.device, dtype=torch.float32)
    return (at * 1.7).sin().view(size).to(like.dtype)
