"""Triton kernels around the matrix products. Activations → the same as two to five torch kernels.

A decode step at batch 1 is bound by reading weights; at 4096 channels every further kernel costs
about as much time as its launch, so fewer kernels are faster. `usable` tries them once on a device
and logs why they cannot be used, for instance if no C compiler is installed.

Imported on CUDA only. Tested through Triton's interpreter on the CPU; unverified on a device.

Legend: B batch, T positions, H hidden size, I inner size of the MLP, h heads, g key-value heads, d
channels of a head.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

logger = logging.getLogger(__name__)

TILE: Final = 1024


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
    x_ptr, delta_ptr, weight_ptr, sum_ptr, out_ptr, width, eps, tile: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, tile)
    inside = at < width
    x = tl.load(x_ptr + row * width + at, mask=inside, other=0.0)
    delta = tl.load(delta_ptr + row * width + at, mask=inside, other=0.0)
    total = (x.to(tl.float32) + delta.to(tl.float32)).to(x.dtype)
    tl.store(sum_ptr + row * width + at, total, mask=inside)
    exact = total.to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(exact * exact, axis=0) / width + eps)
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    normed = exact * scale * weight
    tl.store(out_ptr + row * width + at, normed.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _turn_kernel(  # type: ignore[no-untyped-def]
    qkv_ptr, cos_ptr, sin_ptr, query_ptr, key_ptr, value_ptr,
    length, angle_stride, cache_stride, start,
    heads: tl.constexpr, key_heads: tl.constexpr, half: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    batch, position = row // length, row % length
    at = tl.arange(0, half)
    source = qkv_ptr + (row * (heads + 2 * key_heads) + head) * 2 * half
    low, high = tl.load(source + at), tl.load(source + half + at)
    slot = batch * cache_stride + (start + position) * key_heads * 2 * half
    if head >= heads + key_heads:
        target = value_ptr + slot + (head - heads - key_heads) * 2 * half
        tl.store(target + at, low)
        tl.store(target + half + at, high)
    else:
        angle = batch * angle_stride + position * 2 * half
        first, second = low.to(tl.float32), high.to(tl.float32)
        cos = tl.load(cos_ptr + angle + at).to(tl.float32)
        sin = tl.load(sin_ptr + angle + half + at).to(tl.float32)
        target = query_ptr + (row * heads + head) * 2 * half
        if head >= heads:
            target = key_ptr + slot + (head - heads) * 2 * half
        tl.store(target + at, (first * cos - second * sin).to(low.dtype))
        tl.store(target + half + at, (second * cos + first * sin).to(low.dtype))


def gated(gate_up: Tensor) -> Tensor:
    """Return silu(gate) · up, (B, T, I), for (B, T, 2·I)."""
    batch, length, double = gate_up.shape
    out = gate_up.new_empty(batch, length, double // 2)
    kernel: Any = _gated_kernel[(batch * length, triton.cdiv(double // 2, TILE))]
    kernel(gate_up, out, double // 2, tile=TILE)
    return out


def add_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x + delta, and its root-mean-square norm times `weight`; all (B, T, H)."""
    x, delta = x.contiguous(), delta.contiguous()
    total, out = torch.empty_like(x), torch.empty_like(x)
    width = x.shape[-1]
    kernel: Any = _add_norm_kernel[(x.numel() // width,)]
    kernel(x, delta, weight, total, out, width, eps, tile=triton.next_power_of_2(width))
    return total, out


def turn_into(qkv: Tensor, cos: Tensor, sin: Tensor, cache: Tensor, start: int) -> Tensor:
    """Return the query (B, T, h, d), rotated; write keys, rotated, and values into the cache.

    `qkv` is (B, T, h + 2·g, d), `cos` and `sin` (B or 1, T, 1, d) as in `language.Pass`, `cache`
    (2, B, S, g, d); slots from `start` are written. d must be a power of 2.
    """
    batch, length, all_heads, width = qkv.shape
    key_heads = cache.shape[3]
    heads = all_heads - 2 * key_heads
    query = qkv.new_empty(batch, length, heads, width)
    cos, sin = cos.contiguous(), sin.contiguous()
    kernel: Any = _turn_kernel[(batch * length, all_heads)]
    kernel(
        qkv, cos, sin, query, cache[0], cache[1],
        length, length * width if len(cos) > 1 else 0, cache.stride(1), start,
        heads=heads, key_heads=key_heads, half=width // 2,
    )  # fmt: skip
    return query


@lru_cache(maxsize=8)
def usable(device: torch.device) -> bool:
    """Whether Triton compiles and runs on the device; logs the reason if it does not."""
    try:
        gated(torch.ones(1, 1, 2, device=device))
        torch.cuda.synchronize(device)
    except Exception as error:  # for any error of a compiler or driver, slower code is used instead
        logger.warning(
            "no Triton kernels on %s, decoding will be slower: %s: %s; is a C compiler installed?",
            device, type(error).__name__, error,
        )  # fmt: skip
        return False
    return True
