"""Decode with 8-bit weights: a small batch reads half as many bytes at each token.

Products of a layer → the same with 8-bit weights: one scale per output row, int8 or fp8 (e4m3);
activations keep their dtype. Prefill and batches over `ROWS` use the model's own weights, since
arithmetic limits them, not memory. `low_bit_error.compare` measures the effect on the actions:
probabilities no longer equal `evaluate`'s, so rollouts for PPO should not use 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import Tensor
from torch.nn import functional

from crane_x7_vla_rl.policies.openvla.model.matrices import Dense, LayerMatrices, Matrix
from crane_x7_vla_rl.policies.openvla.run.device import kernels_for

Kind = Literal["int8", "fp8"]
ROWS: Final = 16
"""Batch × tokens up to which the 8-bit product is used: one tile of the tensor cores."""
_TYPES: Final = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}


class LowBit:
    """A weight in 8 bits, in addition to the dense one for large batches."""

    def __init__(self, dense: Dense, kind: Kind) -> None:
        dtype, largest = _TYPES[kind]
        weight = dense.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / largest
        scaled = weight / scale[:, None]
        self.dense = dense
        self.weight = (scaled.round() if kind == "int8" else scaled).to(dtype)
        self.scale = scale

    def __call__(self, x: Tensor) -> Tensor:
        """(B, T, in) → (B, T, out)."""
        rows = x.shape[0] * x.shape[1]
        if rows > ROWS:
            return self.dense(x)
        if kernels_for(x) is not None:
            from crane_x7_vla_rl.policies.openvla.run.low_bit_kernel import product

            return product(x.flatten(0, 1), self.weight, self.scale).view(*x.shape[:2], -1)
        return functional.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """(B, T, out), (B, T, in) → residual + product."""
        return residual + self(x)


def reduced(layers: Sequence[LayerMatrices], kind: Kind) -> list[LayerMatrices]:
    """Return the layers with 8-bit weights; products that PEFT has wrapped are unchanged."""

    def one(matrix: Matrix) -> Matrix:
        return LowBit(matrix, kind) if isinstance(matrix, Dense) else matrix

    return [
        LayerMatrices(one(layer.qkv), one(layer.out), one(layer.gate_up), one(layer.down))
        for layer in layers
    ]
