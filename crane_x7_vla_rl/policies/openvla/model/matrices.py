"""The matrix products of a decoder layer at inference. A layer's modules → four `Matrix`.

Training calls the modules, to which PEFT may have added adapters. Inference joins q, k, v and
gate, up into one product each: `join_weights` moves the modules' weights into one block of memory
and makes the parameters views of it, so that names, memory use and in-place updates are unchanged.
Adapters are joined as copies, which `refresh` updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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


@runtime_checkable
class Beside(Protocol):
    """A linear layer that shares computations with others that read the same input."""

    recomputed: bool
    """Whether the backward pass recomputes its layer (gradient checkpointing)."""

    def beside(self, layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
        """Return the output of each of `layers`, which include this one, for (…, in)."""
        ...

    def added(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return W (out, in), A (r, in), B (out, r) if it computes x Wᵀ + x Aᵀ Bᵀ, else None."""
        ...


def outputs(x: Tensor, *layers: nn.Module) -> list[Tensor]:
    """Return the output of each linear layer for the same (…, in); adapters share products."""
    for layer in layers:
        if type(layer) is not nn.Linear and isinstance(layer, Beside):
            return layer.beside(layers, x)
    return [layer(x) for layer in layers]


@dataclass(frozen=True, eq=False)
class LayerMatrices:
    """The products of one decoder layer."""

    qkv: Matrix
    out: Matrix
    gate_up: Matrix
    down: Matrix

    def refresh(self) -> None:
        """Copy the current adapters."""
        for product in (self.qkv, self.out, self.gate_up, self.down):
            if isinstance(product, Adapted):
                product.refresh()


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


class Adapted:
    """Frozen weights (out, in) and their adapters: three products for all layers together."""

    def __init__(self, layers: Sequence[Beside], weight: Tensor) -> None:
        self._layers, self.weight = layers, weight
        parts = [part for layer in layers if (part := layer.added()) is not None]
        ranks = sum(len(a) for _, a, _ in parts)
        self._a = weight.new_zeros(ranks, weight.shape[1])  # (R, in)
        self._b = weight.new_zeros(len(weight), ranks)  # (out, R), a block for each layer
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the current adapters."""
        row = column = 0
        for layer in self._layers:
            found = layer.added()
            assert found is not None  # an engine ends when an adapter is disabled
            _, a, b = found
            self._a[column : column + len(a)] = a
            self._b[row : row + len(b), column : column + len(a)] = b
            row, column = row + len(b), column + len(a)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, T, in) → (B, T, out)."""
        flat = x.flatten(0, 1)
        return self._add(functional.linear(flat, self.weight), flat).view(*x.shape[:2], -1)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """Add in the same operations as the products."""
        flat = x.flatten(0, 1)
        dense = torch.addmm(residual.flatten(0, 1), flat, self.weight.t())
        return self._add(dense, flat).view_as(residual)

    def _add(self, dense: Tensor, flat: Tensor) -> Tensor:
        return dense.addmm_(flat @ self._a.t(), self._b.t())


class Modules:
    """Modules that PEFT has wrapped, or whose weights must not move.

    Their outputs are concatenated.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = tuple(modules)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, T, in) → (B, T, out of all)."""
        made = outputs(x, *self.modules)
        return made[0] if len(made) == 1 else torch.cat(made, dim=-1)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """Add after the product."""
        return residual + self(x)


def matrix(*modules: nn.Module, move: bool = True) -> Matrix:
    """Return the modules as one product: dense if all are plain linear layers without hooks.

    If their weights may not `move`, several modules stay several products.
    """
    if len(modules) > 1 and not move:
        return Modules(modules)
    weights = [module.weight for module in modules if type(module) is nn.Linear]
    if len(weights) == len(modules):
        return Dense(join_weights(weights))
    beside = [module for module in modules if isinstance(module, Beside)] if move else []
    frozen = [found[0] for module in beside if (found := module.added()) is not None]
    if len(frozen) == len(modules):
        return Adapted(beside, join_weights(frozen))
    return Modules(modules)


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
