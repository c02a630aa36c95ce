"""The operations between a decoder layer's products, with gradients.

Activations → activations: with the kernels of `fused_kernels` on CUDA, each tried once per dtype
and head width (`trials`), otherwise with torch's operations. Counted forward and backward: a gated
unit reads and writes 8 activations instead of 14, a rotation 4 instead of 16, in 2 operations
instead of 5 and 7.

Legend: B batch, T positions, I inner size of the MLP, h heads, d channels of a head.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from crane_x7_vla_rl.policies.openvla.trials import (
    DTYPES,
    Trials,
    kernels_in,
    require_close,
    sample,
)

KERNELS: Final = "crane_x7_vla_rl.policies.openvla.model.fused_kernels"

_trials = Trials()


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) · up, (B, T, I) as both."""
    kernels = kernels_for(gate, up)
    attempt = partial(_try_gated, kernels, gate)
    if kernels is None or not _trials.passed("gated", gate.dtype, gate.device, attempt):
        return _plain_gated(gate, up)
    made: Tensor = _Gated.apply(gate, up, kernels)  # type: ignore[no-untyped-call]
    return made


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, T, h, d) by its position; `sin` contains the sign of each half."""
    kernels = kernels_for(x, cos)
    attempt, shape = partial(_try_rotate, kernels, x), (x.dtype, *x.shape[2:])
    if kernels is None or not _trials.passed("rotate", shape, x.device, attempt):
        return _plain_rotate(x, cos, sin)
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


def kernels_for(x: Tensor, other: Tensor) -> Any:
    """Return the module `fused_kernels` for tensors of one dtype on CUDA, else None."""
    if not x.is_cuda or x.dtype != other.dtype or x.dtype not in DTYPES:
        return None
    return kernels_in(KERNELS)


def _plain_gated(gate: Tensor, up: Tensor) -> Tensor:
    return functional.silu(gate) * up


def _plain_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


# Trials run inside a recomputed layer, too, so they record no gradients: what a checkpoint of
# activations saves must be the same in both runs.


@torch.no_grad()
def _try_gated(kernels: Any, like: Tensor) -> None:
    size = 2, 3, 40
    gate, up, grown = (sample(like, part, *size)[-1] for part in (1, 2, 3))
    require_close(kernels.gated(gate, up), _plain_gated(gate, up))
    share = gate.sigmoid()
    of_gate, of_up = kernels.gated_backward(grown, gate, up)
    require_close(of_gate, grown * up * share * (1 + gate * (1 - share)))
    require_close(of_up, grown * gate * share)


@torch.no_grad()
def _try_rotate(kernels: Any, like: Tensor) -> None:
    heads, width = like.shape[2:]
    x, angles = sample(like, 2, 3, heads, width), sample(like, 2, 3, 1, width // 2)
    cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([-angles.sin(), angles.sin()], -1)
    for turn in (1.0, -1.0):
        require_close(kernels.rotate(x, cos, sin, turn), _plain_rotate(x, cos, turn * sin))
