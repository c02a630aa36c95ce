"""Which kernels a device can run. A tensor → the Triton kernels on CUDA, if they compile."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor

from crane_x7_vla_rl.policies.openvla.trials import kernels_in

KERNELS: Final = "crane_x7_vla_rl.policies.openvla.run.kernels"


def kernels_for(x: Tensor) -> Any:
    """Return the module `kernels` if it can be used on the device of `x`, else None."""
    if not x.is_cuda:
        return None
    kernels = kernels_in(KERNELS)
    return kernels if kernels is not None and kernels.usable(x.device) else None


def launching_on(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which the device of `x` is the current one, as Triton launches need."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
