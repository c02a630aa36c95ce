"""Kernels against torch's operations on random inputs: under the interpreter, and on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

HEADS = ((24, 4, 4), (64, 3, 1), (80, 6, 2), (128, 2, 2), (6, 5, 1))
"""Head width, heads, key-value heads: the shipped policy's first, the released model's last but
one."""
INNER = (2, 100, 257, 11008)
BATCHES = ((1, 1), (3, 2))

LISTEN = """
import logging
import torch
from crane_x7_vla_rl.policies.openvla.run import kernels, low_bit
low_bit.kernels_for = lambda x: kernels

class Lines(logging.Handler):
    found = []
    def emit(self, record):
        self.found.append(record.getMessage())

logging.getLogger().addHandler(Lines())
"""


def require_equal(ours: Tensor, theirs: Tensor) -> None:
    tolerance = 1e-5 if ours.dtype in (torch.float32, torch.float64) else 0.02
    assert torch.allclose(ours.float(), theirs.float(), atol=tolerance, rtol=tolerance)


def gated_case(gated: Any, batch: int, length: int, inner: int, device: Any, dtype: Any) -> None:
    wide = torch.randn(batch, 2 * length, 2 * inner, device=device).to(dtype)
    for both in (wide[:, :length].contiguous(), wide[:, ::2]):
        wanted = functional.silu(both[..., :inner].float()) * both[..., inner:].float()
        require_equal(gated(both), wanted.to(dtype))


def norm_case(add_norm: Any, batch: int, length: int, width: int, device: Any, dtype: Any) -> None:
    x = torch.randn(batch, 2 * length, width, device=device).to(dtype)[:, ::2]
    delta = torch.randn(batch, width, length, device=device).to(dtype).transpose(1, 2)
    weight = torch.randn(width, device=device).to(dtype)
    total, normed = add_norm(x, delta, weight, 1e-6)
    require_equal(total, x + delta)
    wanted = functional.rms_norm((x + delta).float(), (width,), weight.float(), 1e-6)
    require_equal(normed, wanted.to(dtype))


def turn_case(
    turn_into: Any, batch: int, length: int, width: int, heads: int, key_heads: int,
    device: Any, dtype: Any,
) -> None:  # fmt: skip
    from crane_x7_vla_rl.policies.openvla.model.language import rotate

    for rows, start in ((1, 0), (batch, 5)):
        every = heads + 2 * key_heads
        qkv = torch.randn(batch, every, length, width, device=device).to(dtype).transpose(1, 2)
        angles = torch.randn(rows, length, 1, width // 2, device=device)
        cos = torch.cat([angles.cos()] * 2, -1).to(dtype)
        sin = torch.cat([-angles.sin(), angles.sin()], -1).to(dtype)
        cache = torch.full((2, batch, 9, key_heads, width), 7.0, device=device, dtype=dtype)
        wanted = cache.clone()
        turned = rotate(qkv[:, :, : heads + key_heads], cos, sin)
        wanted[0, :, start : start + length] = turned[:, :, heads:]
        wanted[1, :, start : start + length] = qkv[:, :, heads + key_heads :]
        require_equal(turn_into(qkv, cos, sin, cache, start), turned[:, :, :heads])
        require_equal(cache, wanted)


def low_bit_case(
    kind: Any, rows: int, inputs: int, outputs: int, group: int | None, tiles: Any,
    device: Any, dtype: Any,
) -> None:  # fmt: skip
    """The kernel against the dense product with the weight that the 8 bits stand for."""
    from crane_x7_vla_rl.policies.openvla.model.matrices import Dense
    from crane_x7_vla_rl.policies.openvla.run import low_bit_tiles
    from crane_x7_vla_rl.policies.openvla.run.low_bit import LowBit

    coarse = LowBit(Dense(torch.randn(outputs, inputs, device=device).to(dtype)), kind, group)
    low_bit_tiles.TABLE.clear()
    if tiles is not None:
        low_bit_tiles.TABLE[low_bit_tiles.tile_rows(rows), outputs, inputs] = tiles
    x = torch.randn(inputs, rows, 1, device=device).to(dtype).permute(1, 2, 0)
    scale = coarse.scale.t().repeat_interleave(coarse.group, 1)[:, :inputs]
    wanted = x.double() @ (coarse.weight.double() * scale).t()
    require_equal(coarse(x) / inputs**0.5, (wanted / inputs**0.5).to(dtype))
    if tiles is not None and inputs > tiles.inputs and rows and dtype is not torch.float64:
        assert 1 < len(coarse.parts(x)) <= tiles.split
    low_bit_tiles.TABLE.clear()


def parts_case(count: int, device: Any, dtype: Any) -> None:
    """A norm that adds the parts of a product as it reads them."""
    from crane_x7_vla_rl.policies.openvla.run import kernels

    x = torch.randn(3, 2, 100, device=device).to(dtype)
    parts = torch.randn(count, 3, 2, 100, device=device)
    weight = torch.randn(100, device=device).to(dtype)
    total, normed = kernels.add_parts_norm(x, parts, weight, 1e-6)
    wanted = (x.float() + parts.sum(0)).to(dtype)
    require_equal(total, wanted)
    require_equal(normed, functional.rms_norm(wanted.float(), (100,), weight.float()).to(dtype))
