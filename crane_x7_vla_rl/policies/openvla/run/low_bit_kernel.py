"""A Triton kernel for 8-bit weights. A few activations → their product; reads each weight once.

A product with up to 16 rows is bound by reading weights, so a program streams whole rows of them
through buffers (16 bytes per thread and load, several loads ahead) and turns them into the
activations' dtype in registers. The weight is the tensor cores' first factor, 16 of its rows by 16
of its columns, the activations the second, 8 rows of them: for int8 that takes 3.6 instructions per
weight on sm_90 up to 8 rows and 4.1 up to 16, counted in the compiled code, where plain
multiplications took 5 to 6 at one row and 12 at four. An H200 has time for about 7 at its memory's
full speed.

Few outputs make few programs; then several share a row's columns, and whoever takes the result adds
their sums in order (`kernels.add_norm` does so while it reads them).

Imported on CUDA only. Tested through Triton's interpreter on the CPU and compiled there for sm_80
and sm_90; unverified on a device.

Legend: R rows of activations, K inputs, N outputs, G groups of columns that share a scale, P parts.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from crane_x7_vla_rl.policies.openvla.run.kernels import tried
from crane_x7_vla_rl.policies.openvla.run.low_bit_tiles import Tiles, tile_rows, tiles_for
from crane_x7_vla_rl.policies.openvla.trials import DTYPES, require_close, sample


@triton.jit(do_not_specialize=["rows", "outputs"])  # type: ignore[untyped-decorator]
def _parts_kernel(  # type: ignore[no-untyped-def]
    x_ptr, weight_ptr, scale_ptr, out_ptr, rows, outputs, inputs, share,
    group: tl.constexpr, tile_rows: tl.constexpr, tile_out: tl.constexpr, tile_in: tl.constexpr,
    stages: tl.constexpr, whole: tl.constexpr,
):  # fmt: skip
    row = tl.arange(0, tile_rows)[None]
    out = tl.program_id(0) * tile_out + tl.arange(0, tile_out)
    part = tl.program_id(1)
    weight_row = weight_ptr + out[:, None].to(tl.int64) * inputs
    total = tl.zeros((tile_out, tile_rows), dtype=tl.float32)
    end = tl.minimum(part * share + share, inputs)
    for start in tl.range(part * share, end, tile_in, num_stages=stages):
        at = start + tl.arange(0, tile_in)
        x_at = x_ptr + row * inputs + at[:, None]
        scale_at = scale_ptr + start // group * outputs + out
        if whole:  # conditions that always hold would be a seventh of the instructions
            weight = tl.load(weight_row + at[None])
            x = tl.load(x_at, mask=row < rows, other=0.0)
            scale = tl.load(scale_at)
        else:
            read = (out[:, None] < outputs) & (at[None] < inputs)
            weight = tl.load(weight_row + at[None], mask=read, other=0.0)
            x = tl.load(x_at, mask=(row < rows) & (at[:, None] < inputs), other=0.0)
            scale = tl.load(scale_at, mask=out < outputs, other=0.0)
        total += tl.dot(weight.to(x.dtype), x, input_precision="ieee") * scale[:, None]
    tl.store(
        out_ptr + (part * rows + row).to(tl.int64) * outputs + out[:, None],
        total.to(out_ptr.dtype.element_ty),
        mask=(row < rows) & (out[:, None] < outputs),
    )


def runs(x: Tensor, weight: Tensor, group: int) -> bool:
    """Whether the kernel takes rows `x` (R, K) and `weight` (N, K); see `trials`."""
    if x.dtype not in DTYPES:
        return False
    tiles = tiles_for(len(x), *weight.shape)
    outputs, inputs = weight.shape
    whole = _whole(outputs, inputs, tiles.outputs, min(tiles.inputs, group))
    shape = (x.dtype, weight.dtype, inputs, group, tile_rows(len(x)), tiles, whole)
    return tried("8-bit product", shape, x, lambda: _try_parts(x, weight, group, tiles))


def parts(
    x: Tensor, weight: Tensor, scale: Tensor, group: int, tiles: Tiles | None = None
) -> Tensor:
    """Return (P, R, N), whose sum over P is the product, for x (R ≤ 16, K), `weight` (N, K).

    `scale` (G, N) float32 is for each `group` columns, a power of 2. One part has the dtype of
    `x`; several have float32. Tiles: those of `tiles_for`.
    """
    rows, inputs = x.shape
    outputs = len(weight)
    chosen = tiles or tiles_for(rows, outputs, inputs)
    tile_in = min(chosen.inputs, group)
    steps = triton.cdiv(inputs, tile_in)
    share = triton.cdiv(steps, min(chosen.split, steps)) * tile_in
    count = triton.cdiv(inputs, share)
    dtype = x.dtype if count == 1 else torch.float32
    out = torch.empty(count, rows, outputs, dtype=dtype, device=x.device)
    kernel: Any = _parts_kernel[(triton.cdiv(outputs, chosen.outputs), count)]
    kernel(
        x.contiguous(), weight, scale, out, rows, outputs, inputs, share,
        group=group, tile_rows=tile_rows(rows), tile_out=chosen.outputs, tile_in=tile_in,
        stages=chosen.stages, whole=_whole(outputs, inputs, chosen.outputs, tile_in),
        num_warps=chosen.warps,
    )  # fmt: skip
    return out


def _whole(outputs: int, inputs: int, tile_out: int, tile_in: int) -> bool:
    """Whether no tile reaches over the weight's edge."""
    return outputs % tile_out == 0 and inputs % tile_in == 0


def _try_parts(x: Tensor, weight: Tensor, group: int, tiles: Tiles) -> None:
    rows, inputs = x.shape
    rest = len(weight) % tiles.outputs or tiles.outputs  # of the last program
    outputs = min(tiles.outputs + rest, len(weight))
    given = sample(x, rows, inputs)
    scale = 0.01 + 0.005 * sample(x.float(), triton.cdiv(inputs, group), outputs)
    coarse = (100 * sample(x.float(), outputs, inputs)).to(weight.dtype)
    spread = scale.t().repeat_interleave(group, 1)[:, :inputs]
    wanted = given.double() @ (coarse.double() * spread.double()).t()
    found = parts(given, coarse, scale, group, tiles).sum(0, dtype=torch.float32)
    require_close(found.to(x.dtype), wanted.to(x.dtype))
