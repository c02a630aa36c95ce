"""The operations between a decoder layer's products, with gradients.

Activations → activations: with the kernels of `fused_kernels` on CUDA if they compile, otherwise
with torch's operations. Counted forward and backward: a gated unit reads and writes 8 activations
instead of 14, a rotation 4 instead of 16, in 2 operations instead of 5 and 7.

Legend: B batch, T positions, I inner size of the MLP, h heads, d channels of a head.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

logger = logging.getLogger(__name__)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) · up, (B, T, I) as both."""
    kernels = _kernels_for(gate.device, gate.dtype, 1, 2)
    if kernels is None or gate.dtype != up.dtype:
        return functional.silu(gate) * up
    made: Tensor = _Gated.apply(gate, up, kernels)  # type: ignore[no-untyped-call]
    return made


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, T, h, d) by its position; `sin` contains the sign of each half."""
    heads, width = x.shape[2:]
    kernels = _kernels_for(x.device, x.dtype, heads, width)
    if kernels is None or x.dtype != cos.dtype:
        return torch.addcmul(x * cos, x.roll(width // 2, -1), sin)
    made: Tensor = _Rotated.apply(x, cos, sin, kernels)  # type: ignore[no-untyped-call]
    return made


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, kernels: Any) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.kernels = kernels
        return torch.as_tensor(kernels.gated(gate, up))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grown: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.kernels.gated_backward(grown, *ctx.saved_tensors), None


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, kernels: Any) -> Tensor:
        ctx.angles, ctx.kernels = (cos, sin), kernels
        return torch.as_tensor(kernels.rotate(x, cos, sin, 1.0))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grown: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.kernels.rotate(grown, *ctx.angles, -1.0), None, None, None


@lru_cache(maxsize=32)
def _kernels_for(device: torch.device, dtype: torch.dtype, heads: int, width: int) -> Any:
    """Return the kernels on CUDA if they run for such heads; otherwise log why they do not."""
    if device.type != "cuda":
        return None
    try:
        from crane_x7_vla_rl.policies.openvla.model import fused_kernels

        x = torch.ones(1, 1, heads, width, device=device, dtype=dtype)
        angles = torch.ones(1, 1, 1, width, device=device, dtype=dtype)
        fused_kernels.rotate(x, angles, angles, 1.0)
        fused_kernels.gated_backward(x, fused_kernels.gated(x, x), x)
        torch.cuda.synchronize(device)
    except Exception as error:  # whatever a compiler or driver raises, slower code takes over
        logger.warning(
            "no Triton kernels for training on %s (%d heads of %d, %s), so it is slower: %s: %s;"
            " check that a C compiler is installed",
            device, heads, width, dtype, type(error).__name__, error,
        )  # fmt: skip
        return None
    return fused_kernels
