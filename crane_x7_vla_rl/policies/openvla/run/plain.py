"""What `kernels` computes, in torch's operations: on a CPU, and where a kernel does not run.

Activations → activations, on any device and in any dtype. Legend: as in `kernels`.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from crane_x7_vla_rl.policies.openvla.model.language import rotate


def gated(gate_up: Tensor) -> Tensor:
    """Return silu(gate) · up, (B, T, I), for (B, T, 2·I)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def add_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x + delta, and its root-mean-square norm times `weight`; all (B, T, H)."""
    total = x + delta
    return total, functional.rms_norm(total, weight.shape, weight, eps)


def turn_into(qkv: Tensor, cos: Tensor, sin: Tensor, cache: Tensor, start: int) -> Tensor:
    """Return the query (B, T, h, d), turned; write keys, turned, and values into the cache.

    `qkv` is (B, T, h + 2·g, d), `cos` and `sin` (B or 1, T, 1, d) as in `language.Pass`, `cache`
    (2, B, S, g, d); slots from `start` are written.
    """
    key_heads, end = cache.shape[3], start + qkv.shape[1]
    turned = rotate(qkv[:, :, :-key_heads], cos, sin)  # (B, T, h + g, d)
    cache[0, :, start:end] = turned[:, :, -key_heads:]
    cache[1, :, start:end] = qkv[:, :, -key_heads:]
    return turned[:, :, :-key_heads]
