"""A Triton kernel for 8-bit weights. A few activations → their product; reads each weight once.

Imported on CUDA only. Tested through Triton's interpreter on the CPU; unverified on a device, and
its tile sizes are not tuned.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_ROWS: Final = 16
TILE_OUT: Final = 16
"""256 programs for the 4096 rows of the smallest matrix, about two per multiprocessor."""
TILE_IN: Final = 256


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    x_ptr, weight_ptr, scale_ptr, out_ptr, rows, outputs, inputs,
    tile_rows: tl.constexpr, tile_out: tl.constexpr, tile_in: tl.constexpr,
):  # fmt: skip
    row = tl.arange(0, tile_rows)
    out = tl.program_id(0) * tile_out + tl.arange(0, tile_out)
    total = tl.zeros((tile_rows, tile_out), dtype=tl.float32)
    for start in range(0, inputs, tile_in):
        at = start + tl.arange(0, tile_in)
        x = tl.load(
            x_ptr + row[:, None] * inputs + at[None],
            mask=(row[:, None] < rows) & (at[None] < inputs),
            other=0.0,
        )
        weight = tl.load(
            weight_ptr + out[:, None] * inputs + at[None],
            mask=(out[:, None] < outputs) & (at[None] < inputs),
            other=0.0,
        )
        total += tl.dot(x, tl.trans(weight.to(x.dtype)), input_precision="ieee")
    scale = tl.load(scale_ptr + out, mask=out < outputs, other=0.0)
    tl.store(
        out_ptr + row[:, None] * outputs + out[None],
        (total * scale[None]).to(out_ptr.dtype.element_ty),
        mask=(row[:, None] < rows) & (out[None] < outputs),
    )


def product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Return (rows, out) for x (rows ≤ 16, in), 8-bit weight (out, in) and its scale (out,)."""
    rows, inputs = x.shape
    out = torch.empty(rows, len(weight), dtype=x.dtype, device=x.device)
    kernel: Any = _kernel[(triton.cdiv(len(weight), TILE_OUT),)]
    kernel(
        x.contiguous(), weight, scale, out, rows, len(weight), inputs,
        tile_rows=TILE_ROWS, tile_out=TILE_OUT, tile_in=TILE_IN,
    )  # fmt: skip
    return out
