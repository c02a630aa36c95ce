"""Triton kernels at the shapes in use, against torch's operations. Device → figures.

Shapes: the released size, the shipped policy's (heads of 24 channels), the fixture's, grouped
heads, odd inner sizes; batches from 1 to 256. With `--tiny`, Triton's interpreter runs the small
ones on the CPU.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

import torch
from sft_bench.figures import Figures
from torch.nn import functional

from crane_x7_vla_rl.policies.openvla.model.language import rotate
from crane_x7_vla_rl.policies.openvla.run.device import kernels_for
from gpu_check.parts import Options, Skipped

LIMITS: Final = {torch.float32: 1e-5, torch.bfloat16: 2**-6}
"""Of the largest value."""


@dataclass(frozen=True)
class Shape:
    """Sizes of one model."""

    name: str
    hidden: int
    inner: int
    heads: int
    key_heads: int

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.hidden // self.heads


SHAPES: Final = (
    Shape("released", 4096, 11008, 32, 32),
    Shape("shipped", 96, 256, 4, 4),
    Shape("fixture", 32, 88, 2, 2),
    Shape("grouped heads", 1024, 2816, 16, 4),
    Shape("odd", 120, 333, 3, 1),
)
BATCHES: Final = ((1, 1), (1, 37), (4, 1), (16, 1), (64, 1), (256, 1), (3, 18))
"""B, T."""


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the largest difference, as a share of the largest value."""
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())


def errors(kernels: Any, shape: Shape, batch: int, length: int, like: torch.Tensor) -> float:
    """Return the largest error of the three kernels at one shape."""
    draw = torch.Generator(like.device).manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=draw, device=like.device).to(like.dtype)

    both = normal(batch, length, 2 * shape.inner)
    gate, up = both.float().chunk(2, -1)
    found = [gap(kernels.gated(both), functional.silu(gate) * up)]
    x, delta, weight = (
        normal(batch, length, shape.hidden),
        normal(batch, length, shape.hidden),
        normal(shape.hidden),
    )
    total, normed = kernels.add_norm(x, delta, weight, 1e-6)
    summed = x + delta
    expected = functional.rms_norm(summed.float(), (shape.hidden,), weight.float(), 1e-6)
    found += [gap(total, summed), gap(normed, expected)]
    width, keys = shape.head_dim, shape.key_heads
    qkv = normal(batch, length, shape.heads + 2 * keys, width)
    angles = torch.rand(1, length, 1, width // 2, generator=draw, device=like.device)
    cos = torch.cat([angles.cos()] * 2, -1).to(like.dtype)
    sin = torch.cat([-angles.sin(), angles.sin()], -1).to(like.dtype)
    cache = like.new_zeros(2, batch, length + 3, keys, width)
    query = kernels.turn_into(qkv, cos, sin, cache, 2)
    turned = rotate(qkv[:, :, : shape.heads + keys].float(), cos.float(), sin.float())
    found += [
        gap(query, turned[:, :, : shape.heads]),
        gap(cache[0, :, 2 : 2 + length], turned[:, :, shape.heads :]),
        gap(cache[1, :, 2 : 2 + length], qkv[:, :, shape.heads + keys :]),
    ]
    return max(found)


class Refusals(logging.Handler):
    """Counts the warnings with which `run.trials` replaces a kernel by torch's operations."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count and print one."""
        self.count += 1
        print(f"  {record.getMessage()}")


def kernels_on(device: torch.device, tiny: bool) -> Any:
    """Return the module of kernels; with `tiny`, interpreted. Raises Skipped."""
    if tiny:
        if find_spec("triton") is None:
            raise Skipped("triton missing")
        os.environ["TRITON_INTERPRET"] = "1"  # before its import
        return import_module("crane_x7_vla_rl.policies.openvla.run.kernels")
    found = kernels_for(torch.zeros(1, device=device))
    if found is None:
        raise Skipped("no Triton kernels on this device; the log says why")
    return found


def run(figures: Figures, options: Options) -> None:
    """Compare at every shape; a shape that fails to compile is a figure that misses its target."""
    device = torch.device(options.device)
    kernels = kernels_on(device, options.tiny)
    refusals = Refusals()
    logging.getLogger("crane_x7_vla_rl.policies.openvla.run").addHandler(refusals)
    shapes, batches = (SHAPES[1:3], BATCHES[:1]) if options.tiny else (SHAPES, BATCHES)
    for dtype, limit in LIMITS.items():
        like = torch.zeros(1, dtype=dtype, device=device)
        for shape in shapes:
            worst, failed, before = 0.0, 0, refusals.count
            for batch, length in batches:
                try:
                    worst = max(worst, errors(kernels, shape, batch, length, like))
                except Exception as error:  # any error of the compiler
                    failed += 1
                    print(f"  {shape.name}, {batch} × {length}: {type(error).__name__}: {error}")
            words = f"{str(dtype).removeprefix('torch.')}, {shape.name}"
            figures.row(f"{words}: largest error", worst, "of the largest", at_most=limit)
            figures.row(f"{words}: batches that failed", failed, f"of {len(batches)}", at_most=0)
            figures.row(f"{words}: kernels replaced by torch", refusals.count - before, "",
                        at_most=0)  # fmt: skip
