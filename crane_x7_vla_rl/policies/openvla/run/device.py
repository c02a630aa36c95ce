"""Which kernels a device can run. A tensor → the Triton kernels on CUDA, if they compile."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def kernels_for(x: Tensor) -> Any:
    """Return the module `kernels` if it can be used on the device of `x`, else None."""
    if not x.is_cuda:
        return None
    try:
        from crane_x7_vla_rl.policies.openvla.run import kernels
    except ImportError:  # torch for CUDA includes Triton only on Linux
        return None
    return kernels if kernels.usable(x.device) else None
