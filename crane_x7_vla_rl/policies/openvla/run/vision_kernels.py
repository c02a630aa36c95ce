"""Triton kernel between the products of a vision tower. Activations → their sum and its norm.

A layer scale, a sum and a layer norm read and write seven activations as three of torch's
operations, four as one kernel. The kernel is tried once per dtype and width, as those of `kernels`;
where it does not run, torch's operations do.

Imported on CUDA only. Tested through Triton's interpreter on the CPU, and compiled there for sm_80
and sm_90; unverified on a device.

Legend: B batch, N tokens of an image, C channels of a tower.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from crane_x7_vla_rl.policies.openvla.model import vision
from crane_x7_vla_rl.policies.openvla.run import kernels
from crane_x7_vla_rl.policies.openvla.trials import DTYPES, require_close, sample


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm_kernel(  # type: ignore[no-untyped-def]
    x_ptr, delta_ptr, factor_ptr, weight_ptr, bias_ptr, sum_ptr, out_ptr, width, eps,
    scaled: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, tile)
    inside = at < width
    x = tl.load(x_ptr + row * width + at, mask=inside, other=0.0)
    delta = tl.load(delta_ptr + row * width + at, mask=inside, other=0.0).to(tl.float32)
    if scaled:
        delta *= tl.load(factor_ptr + at, mask=inside, other=0.0).to(tl.float32)
    total = (x.to(tl.float32) + delta).to(x.dtype)
    tl.store(sum_ptr + row * width + at, total, mask=inside)
    exact = total.to(tl.float32)
    mean = tl.sum(exact, axis=0) / width
    centred = tl.where(inside, exact - mean, 0.0)
    scale = 1 / tl.sqrt(tl.sum(centred * centred, axis=0) / width + eps)
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + at, mask=inside, other=0.0).to(tl.float32)
    normed = centred * scale * weight + bias
    tl.store(out_ptr + row * width + at, normed.to(out_ptr.dtype.element_ty), mask=inside)


def add_norm(
    x: Tensor, delta: Tensor, factor: Tensor | None, norm: nn.LayerNorm
) -> tuple[Tensor, Tensor]:
    """The `vision.AddNorm` of one kernel."""
    kinds = {part.dtype for part in (delta, factor, norm.weight, norm.bias) if part is not None}
    attempt = partial(_try_add_norm, x, factor is not None)
    alike = kinds == {x.dtype} and x.dtype in DTYPES and x.numel() > 0
    shape = (x.dtype, x.shape[-1], factor is not None)
    if not (alike and kernels.tried("vision add_norm", shape, x, attempt)):
        return vision.add_norm(x, delta, factor, norm)
    return _add_norm(x, delta, factor, norm)


def _add_norm(
    x: Tensor, delta: Tensor, factor: Tensor | None, norm: nn.LayerNorm
) -> tuple[Tensor, Tensor]:
    x, delta = x.contiguous(), delta.contiguous()
    total, out = torch.empty_like(x), torch.empty_like(x)
    width = x.shape[-1]
    tile = triton.next_power_of_2(width)
    factors = norm.weight if factor is None else factor  # a pointer that is not read
    kernel: Any = _add_norm_kernel[(x.numel() // width,)]
    kernel(
        x, delta, factors, norm.weight, norm.bias, total, out, width, norm.eps,
        scaled=factor is not None, tile=tile, num_warps=min(max(tile // 256, 1), 8),
    )  # fmt: skip
    return total, out


def _try_add_norm(like: Tensor, scaled: bool) -> None:
    width = like.shape[-1]
    x, delta = sample(like, 2, 3, width), sample(like, 3, 2, width).view(2, 3, width)
    factor = sample(like, width + 1)[1:] if scaled else None
    norm = nn.LayerNorm(width, eps=vision.NORM_EPS, device=like.device, dtype=like.dtype)
    with torch.no_grad():
        norm.weight.copy_(sample(like, width + 2)[2:])
        norm.bias.copy_(sample(like, width + 3)[3:])
    theirs = vision.add_norm(x, delta, factor, norm)
    for ours, wanted in zip(_add_norm(x, delta, factor, norm), theirs, strict=True):
        require_close(ours, wanted)
