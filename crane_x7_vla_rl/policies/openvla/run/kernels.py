"""Triton kernels around the matrix products. Activations → the same as two to five torch kernels.

A decode step at batch 1 is bound by reading weights; at 4096 channels every further kernel costs
about as much time as its launch, so fewer kernels are faster. Each function tries its kernel
once per dtype and shape of the model (`trials`) and uses `plain` where it does not run. Batch and
length are no part of the shape: a kernel is compiled once for all of them.

Imported on CUDA only. Tested through Triton's interpreter on the CPU, and compiled there for sm_80
and sm_90. On an H200 an earlier version ran, for head widths that are powers of two; this one is
unverified on a device.

Legend: B batch, T positions, H hidden size, I inner size of the MLP, h heads, g key-value heads, d
channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from crane_x7_vla_rl.policies.openvla.run import plain
from crane_x7_vla_rl.policies.openvla.trials import DTYPES, Trials, require_close, sample

TILE: Final = 1024
TILE_HEADS: Final = 8
"""Heads of one program of the rotary kernel; they share its cosines and sines."""

_trials = Trials()


@triton.jit  # type: ignore[untyped-decorator]
def _gated_kernel(in_ptr, out_ptr, inner, tile: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * tile + tl.arange(0, tile)
    gate = tl.load(in_ptr + row * 2 * inner + at, mask=at < inner, other=0.0).to(tl.float32)
    up = tl.load(in_ptr + (row * 2 + 1) * inner + at, mask=at < inner, other=0.0).to(tl.float32)
    gated = gate / (1 + tl.exp(-gate)) * up
    tl.store(out_ptr + row * inner + at, gated.to(out_ptr.dtype.element_ty), mask=at < inner)


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm_kernel(  # type: ignore[no-untyped-def]
    x_ptr, parts_ptr, weight_ptr, sum_ptr, out_ptr, width, eps, part_stride,
    parts: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, tile)
    inside = at < width
    x = tl.load(x_ptr + row * width + at, mask=inside, other=0.0)
    delta = tl.load(parts_ptr + row * width + at, mask=inside, other=0.0).to(tl.float32)
    for part in tl.static_range(1, parts):
        delta += tl.load(
            parts_ptr + part * part_stride.to(tl.int64) + row * width + at, mask=inside, other=0.0
        )
    total = (x.to(tl.float32) + delta).to(x.dtype)
    tl.store(sum_ptr + row * width + at, total, mask=inside)
    exact = total.to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(exact * exact, axis=0) / width + eps)
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    normed = exact * scale * weight
    tl.store(out_ptr + row * width + at, normed.to(out_ptr.dtype.element_ty), mask=inside)


# Length and start differ from prompt to prompt; compiling for each of their values would stall.
@triton.jit(do_not_specialize=["length", "start"])  # type: ignore[untyped-decorator]
def _turn_kernel(  # type: ignore[no-untyped-def]
    qkv_ptr, cos_ptr, sin_ptr, query_ptr, key_ptr, value_ptr,
    length, start, angle_stride, cache_stride,
    heads: tl.constexpr, key_heads: tl.constexpr, half: tl.constexpr,
    tile_heads: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * tile_heads + tl.arange(0, tile_heads))[:, None]
    at = tl.arange(0, tile)[None]  # as many as a power of 2 needs; those over `half` are masked
    batch, position = row // length, row % length
    both: tl.constexpr = heads + key_heads
    inside = (head < both + key_heads) & (at < half)
    source = qkv_ptr + (row * (both + key_heads) + head) * 2 * half + at
    low = tl.load(source, mask=inside, other=0.0)
    high = tl.load(source + half, mask=inside, other=0.0)
    angle = batch * angle_stride + position * 2 * half + at
    cos = tl.load(cos_ptr + angle, mask=at < half, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + angle + half, mask=at < half, other=0.0).to(tl.float32)
    first, second = low.to(tl.float32), high.to(tl.float32)
    turned_low = (first * cos - second * sin).to(low.dtype)
    turned_high = (second * cos + first * sin).to(low.dtype)
    query = query_ptr + (row * heads + head) * 2 * half + at
    tl.store(query, turned_low, mask=inside & (head < heads))
    tl.store(query + half, turned_high, mask=inside & (head < heads))
    slot = batch * cache_stride + (start + position) * key_heads * 2 * half
    is_key = inside & (head >= heads) & (head < both)
    key = key_ptr + slot + (head - heads) * 2 * half + at
    tl.store(key, turned_low, mask=is_key)
    tl.store(key + half, turned_high, mask=is_key)
    value = value_ptr + slot + (head - both) * 2 * half + at
    tl.store(value, low, mask=inside & (head >= both))
    tl.store(value + half, high, mask=inside & (head >= both))


def gated(gate_up: Tensor) -> Tensor:
    """Return silu(gate) · up, (B, T, I), for (B, T, 2·I)."""
    inner = gate_up.shape[-1] // 2
    if not _fits("gated", gate_up, (inner,), lambda: _try_gated(gate_up)):
        return plain.gated(gate_up)
    return _gated(gate_up)


def _gated(gate_up: Tensor) -> Tensor:
    batch, length, double = gate_up.shape
    out = gate_up.new_empty(batch, length, double // 2)
    kernel: Any = _gated_kernel[(batch * length, triton.cdiv(double // 2, TILE))]
    kernel(gate_up.contiguous(), out, double // 2, tile=TILE)
    return out


def add_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x + delta, and its root-mean-square norm times `weight`; all (B, T, H)."""
    return add_parts_norm(x, delta[None], weight, eps)


def add_parts_norm(x: Tensor, parts: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the same with delta the sum of `parts` (P, B, T, H), added in order in float32."""
    count = len(parts)
    alike = x.dtype == weight.dtype and parts.dtype in (x.dtype, torch.float32)
    shape = (x.shape[-1], count, parts.dtype)
    attempt = partial(_try_add_norm, x, count, parts.dtype)
    if not (alike and _fits("add_norm", x, shape, attempt)):
        delta = parts[0] if count == 1 else parts.sum(0).to(x.dtype)
        return plain.add_norm(x, delta, weight, eps)
    return _add_norm(x, parts, weight, eps)


def _add_norm(x: Tensor, parts: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x, parts = x.contiguous(), parts.contiguous()
    total, out = torch.empty_like(x), torch.empty_like(x)
    width = x.shape[-1]
    tile = triton.next_power_of_2(width)
    kernel: Any = _add_norm_kernel[(x.numel() // width,)]
    # A row is one program's: its latency is a decode step's, so it gets many threads.
    kernel(
        x, parts, weight.contiguous(), total, out, width, eps, x.numel(),
        parts=len(parts), tile=tile, num_warps=min(max(tile // 512, 1), 16),
    )  # fmt: skip
    return total, out


def turn_into(qkv: Tensor, cos: Tensor, sin: Tensor, cache: Tensor, start: int) -> Tensor:
    """Return the query (B, T, h, d), rotated; write keys, rotated, and values into the cache.

    `qkv` is (B, T, h + 2·g, d), `cos` and `sin` (B or 1, T, 1, d) as in `language.Pass`, `cache`
    (2, B, S, g, d); slots from `start` are written.
    """
    shape = (*qkv.shape[2:], cache.shape[3])
    alike = qkv.dtype == cache.dtype and cache[0, 0].is_contiguous()
    if not (alike and _fits("turn_into", qkv, shape, lambda: _try_turn_into(qkv, cache))):
        return plain.turn_into(qkv, cos, sin, cache, start)
    return _turn_into(qkv, cos, sin, cache, start)


def _turn_into(qkv: Tensor, cos: Tensor, sin: Tensor, cache: Tensor, start: int) -> Tensor:
    batch, length, all_heads, width = qkv.shape
    key_heads = cache.shape[3]
    heads = all_heads - 2 * key_heads
    query = qkv.new_empty(batch, length, heads, width)
    cos, sin = cos.contiguous(), sin.contiguous()
    kernel: Any = _turn_kernel[(batch * length, triton.cdiv(all_heads, TILE_HEADS))]
    kernel(
        qkv.contiguous(), cos, sin, query, cache[0], cache[1],
        length, start, length * width if len(cos) > 1 else 0, cache.stride(1),
        heads=heads, key_heads=key_heads, half=width // 2,
        tile_heads=TILE_HEADS, tile=triton.next_power_of_2(width // 2),
    )  # fmt: skip
    return query


def usable(device: torch.device) -> bool:
    """Whether Triton compiles and runs here at all; logs the reason where it does not."""
    return _trials.passed("gated", "any", device, lambda: _try_gated(torch.ones(2, device=device)))


def tried(name: str, shape: Hashable, x: Tensor, attempt: Callable[[], None]) -> bool:
    """Whether the kernel `name` runs for `shape` on the device of `x`; see `trials`."""
    return _trials.passed(name, shape, x.device, attempt)


def _fits(name: str, x: Tensor, shape: Hashable, attempt: Callable[[], None]) -> bool:
    """Whether the kernel can take `x` and the sizes of the model that it depends on."""
    if x.numel() == 0 or x.dtype not in DTYPES:
        return False
    return tried(name, (x.dtype, shape), x, attempt)


def _try_gated(like: Tensor) -> None:
    x = sample(like, 2, 3, like.shape[-1])
    require_close(_gated(x), plain.gated(x))


def _try_add_norm(like: Tensor, count: int, dtype: torch.dtype) -> None:
    width = like.shape[-1]
    x, weight = sample(like, 2, 3, width), sample(like, width)
    parts = sample(like, count, 3, 2, width).view(count, 2, 3, width).to(dtype)
    theirs = plain.add_norm(x, parts.sum(0, dtype=torch.float32).to(x.dtype), weight, 1e-6)
    for ours, wanted in zip(_add_norm(x, parts, weight, 1e-6), theirs, strict=True):
        require_close(ours, wanted)


def _try_turn_into(qkv: Tensor, cache: Tensor) -> None:
    x = sample(qkv, 2, 3, *qkv.shape[2:])
    angles = sample(qkv, 2, 3, 1, qkv.shape[3] // 2)
    cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([-angles.sin(), angles.sin()], -1)
    ours, theirs = (cache.new_zeros(2, 2, 5, *cache.shape[3:]) for _ in range(2))
    require_close(_turn_into(x, cos, sin, ours, 1), plain.turn_into(x, cos, sin, theirs, 1))
    require_close(ours, theirs)
