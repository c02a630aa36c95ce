"""Triton kernels for a decoder layer with gradients. Tensors → the results of torch's operations.

Between the products, torch reads and writes each activation three to five times; these kernels do
it once, forward and backward, for every width. `fused` decides when they are used.

Imported on CUDA only. Tested through Triton's interpreter on the CPU; unverified on a device.

Legend: N elements, rows of batch and positions (B·T), h heads, d channels of a head.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE: Final = 1024


@triton.jit  # type: ignore[untyped-decorator]
def _gated_kernel(gate_ptr, up_ptr, out_ptr, count, tile: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    inside = at < count
    gate = tl.load(gate_ptr + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=inside, other=0.0).to(tl.float32)
    made = gate / (1 + tl.exp(-gate)) * up
    tl.store(out_ptr + at, made.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _gated_backward_kernel(  # type: ignore[no-untyped-def]
    grown_ptr, gate_ptr, up_ptr, of_gate_ptr, of_up_ptr, count, tile: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    inside = at < count
    grown = tl.load(grown_ptr + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=inside, other=0.0).to(tl.float32)
    share = 1 / (1 + tl.exp(-gate))
    of_gate = grown * up * share * (1 + gate * (1 - share))
    of_up = grown * gate * share
    tl.store(of_gate_ptr + at, of_gate.to(of_gate_ptr.dtype.element_ty), mask=inside)
    tl.store(of_up_ptr + at, of_up.to(of_up_ptr.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _rotate_kernel(  # type: ignore[no-untyped-def]
    x_ptr, cos_ptr, sin_ptr, out_ptr, length, angle_stride, heads, half, turn,
    block: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * block + tl.arange(0, block)[:, None]
    at = tl.arange(0, tile)[None, :]
    inside = (head < heads) & (at < half)
    low = (row * heads + head) * 2 * half + at
    angle = (row // length) * angle_stride + (row % length) * 2 * half + at
    first = tl.load(x_ptr + low, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x_ptr + low + half, mask=inside, other=0.0).to(tl.float32)
    cos = tl.load(cos_ptr + angle, mask=at < half, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + angle + half, mask=at < half, other=0.0).to(tl.float32) * turn
    kind = out_ptr.dtype.element_ty
    tl.store(out_ptr + low, (first * cos - second * sin).to(kind), mask=inside)
    tl.store(out_ptr + low + half, (second * cos + first * sin).to(kind), mask=inside)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) · up; all of one shape."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    kernel: Any = _gated_kernel[(triton.cdiv(gate.numel(), TILE),)]
    kernel(gate, up, out, gate.numel(), tile=TILE)
    return out


def gated_backward(grown: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of gate and up for that of `gated`."""
    grown, gate, up = grown.contiguous(), gate.contiguous(), up.contiguous()
    of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
    kernel: Any = _gated_backward_kernel[(triton.cdiv(gate.numel(), TILE),)]
    kernel(grown, gate, up, of_gate, of_up, gate.numel(), tile=TILE)
    return of_gate, of_up


def rotate(x: Tensor, cos: Tensor, sin: Tensor, turn: float) -> Tensor:
    """Return (B, T, h, d), rotated as by `language.rotate` (`turn` 1) or back (−1).

    `cos` and `sin` are (B or 1, T, 1, d).
    """
    x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
    batch, length, heads, width = x.shape
    tile = triton.next_power_of_2(width // 2)
    block = min(triton.next_power_of_2(heads), max(1, TILE // tile))
    out = torch.empty_like(x)
    kernel: Any = _rotate_kernel[(batch * length, triton.cdiv(heads, block))]
    kernel(
        x, cos, sin, out, length, length * width if len(cos) > 1 else 0, heads, width // 2, turn,
        block=block, tile=tile,
    )  # fmt: skip
    return out
