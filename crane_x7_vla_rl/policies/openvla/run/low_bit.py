"""Decode with 8-bit weights: a small batch reads half as many bytes at each token.

Products of a layer → the same with weights as int8 or fp8 (e4m3), and one float32 scale per output
and `GROUP` inputs; activations keep their dtype. int8 moves logits about as far as bfloat16 does,
fp8 two to six times as far, at the same size: docs/openvla.md has the figures. Prefill and batches
over `ROWS` keep the model's own weights, since arithmetic binds them, not memory.
`low_bit_error.compare` measures what this changes in the actions: probabilities no longer equal
`evaluate`'s, so rollouts that PPO learns from should not use it.

Legend: N outputs, K inputs, G groups of inputs, P parts of a sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import torch
from torch import Tensor
from torch.nn import functional

from crane_x7_vla_rl.policies.openvla.model.matrices import Dense, LayerMatrices, Matrix
from crane_x7_vla_rl.policies.openvla.run.device import kernels_for
from crane_x7_vla_rl.policies.openvla.run.low_bit_tiles import ROWS
from crane_x7_vla_rl.policies.openvla.trials import kernels_in

KERNELS: Final = "crane_x7_vla_rl.policies.openvla.run.low_bit_kernel"
Kind = Literal["int8", "fp8"]
GROUP: Final = 128
"""Inputs that share a scale: 3 % more to read, and an outlier costs accuracy in its group alone."""
_TYPES: Final = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}


class LowBit:
    """A weight in 8 bits, in addition to the dense one for large batches."""

    def __init__(self, dense: Dense, kind: Kind, group: int | None = GROUP) -> None:
        """`group` is a power of 2 from 16, the inputs that share a scale; None: all of them."""
        dtype, largest = _TYPES[kind]
        weight = dense.weight.detach().float()
        inputs = weight.shape[1]
        whole = max(16, 1 << (inputs - 1).bit_length())  # a power of 2 that holds all inputs
        self.group = min(group or whole, whole)
        padded = functional.pad(weight, (0, -inputs % self.group))
        by_group = padded.view(len(weight), -1, self.group)  # (N, G, group)
        smallest = torch.finfo(torch.float32).tiny
        scale = by_group.abs().amax(dim=2).clamp_min(smallest) / largest  # (N, G)
        scaled = (by_group / scale[..., None]).view_as(padded)[:, :inputs]
        self.dense = dense
        self.weight = (scaled.round() if kind == "int8" else scaled).to(dtype).contiguous()
        """(N, K)."""
        self.scale = scale.t().contiguous()
        """(G, N) float32: what a program reads at once lies side by side."""

    def __call__(self, x: Tensor) -> Tensor:
        """(B, T, in) → (B, T, out)."""
        parts = self.parts(x)
        return parts[0] if len(parts) == 1 else parts.sum(0).to(x.dtype)

    def parts(self, x: Tensor) -> Tensor:
        """(B, T, in) → (P, B, T, out), whose sum over P is the product."""
        if x.shape[0] * x.shape[1] > ROWS:
            return self.dense(x)[None]
        kernel = self._kernel(x)
        if kernel is None:  # a GPU without the kernel gains nothing from fewer bits
            return (self.dense(x) if x.is_cuda else self._plain(x))[None]
        parts: Tensor = kernel.parts(x.flatten(0, 1), self.weight, self.scale, self.group)
        return parts.view(len(parts), *x.shape[:2], -1)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """(B, T, out), (B, T, in) → residual + product."""
        if x.shape[0] * x.shape[1] > ROWS:
            return self.dense.onto(residual, x)
        return residual + self(x)

    def _kernel(self, x: Tensor) -> Any:
        """Return the module `low_bit_kernel` where it can take `x`, else None."""
        kernel = None if kernels_for(x) is None or not x.numel() else kernels_in(KERNELS)
        if kernel is None or not kernel.runs(x.flatten(0, 1), self.weight, self.group):
            return None
        return kernel

    def _plain(self, x: Tensor) -> Tensor:
        """Return the product in torch's operations, which make the dense weight at each call."""
        exact = torch.promote_types(x.dtype, torch.float32)
        scale = self.scale.t().repeat_interleave(self.group, 1)[:, : self.weight.shape[1]]
        weight = self.weight.to(exact) * scale.to(exact)
        return functional.linear(x.to(exact), weight).to(x.dtype)


def reduced(layers: Sequence[LayerMatrices], kind: Kind) -> list[LayerMatrices]:
    """Return the layers with 8-bit weights; products that PEFT has wrapped are unchanged."""

    def one(matrix: Matrix) -> Matrix:
        return LowBit(matrix, kind) if isinstance(matrix, Dense) else matrix

    return [
        LayerMatrices(one(layer.qkv), one(layer.out), one(layer.gate_up), one(layer.down))
        for layer in layers
    ]
