"""The matrix products of a decoder layer at inference. A layer's modules → four `Matrix`.

Training calls the modules, to which PEFT may have added adapters. Inference joins q, k, v and
gate, up into one product each: `join_weights` moves the modules' weights into one block of memory
and makes the parameters views of it, so that names, memory use and in-place updates are unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional


class Matrix(Protocol):
    """A linear map without bias."""

    def __call__(self, x: Tensor) -> Tensor:
        """(B, T, in) → (B, T, out)."""
        ...

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """(B, T, out), (B, T, in) → residual + product."""
        ...


@dataclass(frozen=True, eq=False)
class LayerMatrices:
    """The products of one decoder layer."""

    qkv: Matrix
    out: Matrix
    gate_up: Matrix
    down: Matrix


class Dense:
    """A weight (out, in) in the model's dtype."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        """(B, T, in) → (B, T, out)."""
        return functional.linear(x, self.weight)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """Add in the same operation as the product."""
        added = torch.addmm(residual.flatten(0, 1), x.flatten(0, 1), self.weight.t())
        return added.view_as(residual)


class Modules:
    """Modules that PEFT has wrapped, or whose weights must not move.

    Called one by one; their outputs are concatenated.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = tuple(modules)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, T, in) → (B, T, out of all)."""
        outputs: list[Tensor] = [module(x) for module in self.modules]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """Add after the product."""
        return residual + self(x)


def matrix(*modules: nn.Module, move: bool = True) -> Matrix:
    """Return the modules as one product: dense if all are plain linear layers without hooks.

    If their weights may not `move`, several modules stay several products.
    """
    weights = [module.weight for module in modules if type(module) is nn.Linear]
    if len(weights) != len(modules) or (len(modules) > 1 and not move):
        return Modules(modules)
    return Dense(join_weights(weights))


def join_weights(weights: Sequence[Tensor]) -> Tensor:
    """Return (sum of out, in): the stacked weights, which become views of the result.

    Nothing moves if they already are. Needs the memory of one copy meanwhile.
    """
    first = weights[0].detach()
    rows = sum(len(weight) for weight in weights)
    end = first.data_ptr()
    adjacent = True
    for weight in weights:
        adjacent &= weight.is_contiguous() and weight.data_ptr() == end
        end += weight.numel() * weight.element_size()
    room = first.untyped_storage().nbytes() - first.storage_offset() * first.element_size()
    if adjacent and room >= rows * first.shape[1] * first.element_size():
        return first.as_strided((rows, first.shape[1]), (first.shape[1], 1))
    joined = torch.cat([weight.detach() for weight in weights])
    start = 0
    for weight in weights:
        weight.data = joined[start : start + len(weight)]
        start += len(weight)
    return joined
