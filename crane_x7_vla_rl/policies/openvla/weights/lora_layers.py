"""Frozen layers with adapters, computed in fewer passes over memory than PEFT's layers.

`lora` adds them to a model. Activations → activations. They are PEFT's layers: names of parameters,
merging and disabling of adapters are PEFT's. The results are the same, but

- layers that read the same input (q, k, v; gate, up) share one product with all of their first
  matrices, forward and backward, and one dropout mask;
- dropout's and the adapter's factors are multiplied into the small first matrix, not the outputs;
- dropout samples 16 bits per element on a CPU;
- the adapter's product also adds its output, and the gradient of its input likewise;
- casts of the small matrices are not nodes of the graph;
- with gradient checkpointing, the last product of a layer is not recomputed;
- a convolution whose patches do not overlap is one product over patches;
- a head can compute a part of its rows.

Legend: … batch and positions, N all of them, r rank, R the ranks of all layers that read one input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from peft.tuners.lora import layer as peft
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

ADAPTER: Final = "default"
"""PEFT's name for the only adapter."""
SIDES: Final = 1 << 16
"""Number of values of dropout's random numbers; its share is rounded to a multiple of 1 / SIDES."""


class _Product(torch.autograd.Function):
    """x Wᵀ + bias + scale · (mask ∘ x) Aᵀ Bᵀ of layers that read one x; W and bias are frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mask: Tensor | None, scale: float,
        frozen: Sequence[tuple[Tensor, Tensor | None]], *halves: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """(N, in), (N, in), factor, (out, in) and (out,) each, (r, in) each, (out, r) each.

        Returns (N, out) each, in the dtype of x.
        """
        first, second = halves[: len(frozen)], halves[len(frozen) :]
        a, bs = _first(x, scale, first), [half.to(x.dtype) for half in second]
        small = _dropped(x, mask) @ a.t()  # (N, R)
        ctx.save_for_backward(x, mask, a, small, *bs)
        ctx.weights, ctx.scale, ctx.of = [weight for weight, _ in frozen], scale, first
        return _grown(x, small, frozen, bs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grown: Tensor) -> tuple[Tensor | None, ...]:
        """(N, out) each → gradients of x, A and B."""
        x, mask, a, small, *bs = ctx.saved_tensors
        of_x = _of_x(grown, ctx.weights) if ctx.needs_input_grad[0] else None
        of_small, of_bs = _of_second(grown, small, bs, ctx.of)
        of_as = _of_first(of_x, of_small, (x, mask, a), ctx.scale, ctx.of)
        return of_x, None, None, None, *of_as, *of_bs


class _Shrunk(torch.autograd.Function):
    """The first half of `_Product` for layers that are recomputed: returns x itself and small.

    `_Grown` takes x from here, so that both gradients of x are added in one tensor.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mask: Tensor | None, scale: float, *first: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(N, in), (N, in), factor, (r, in) each → (N, in), (N, R)."""
        a = _first(x, scale, first)
        ctx.save_for_backward(x, mask, a)
        ctx.scale, ctx.of = scale, first
        ctx.set_materialize_grads(False)
        passed = x.view_as(x)
        if not ctx.needs_input_grad[0]:
            ctx.mark_non_differentiable(passed)
        return passed, _dropped(x, mask) @ a.t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_x: Tensor | None, of_small: Tensor) -> tuple[Tensor | None, ...]:
        """(N, in), made by `_Grown` and changed here, (N, R) → gradients of x and A."""
        of_as = _of_first(of_x, of_small, ctx.saved_tensors, ctx.scale, ctx.of)
        return of_x, None, None, *of_as


class _Grown(torch.autograd.Function):
    """The second half. It saves no tensor through autograd, so recomputation stops before it.

    Instead it keeps small tensors itself.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, small: Tensor, frozen: Sequence[tuple[Tensor, Tensor | None]],
        *second: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """(N, in), (N, R), (out, in) and (out,) each, (out, r) each → (N, out) each."""
        ctx.weights = [weight for weight, _ in frozen]
        ctx.small, ctx.bs, ctx.of = small, [half.to(x.dtype) for half in second], second
        return _grown(x, small, frozen, ctx.bs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grown: Tensor) -> tuple[Tensor | None, ...]:
        """(N, out) each → gradients of x, small and B."""
        of_x = _of_x(grown, ctx.weights) if ctx.needs_input_grad[0] else None
        of_small, of_bs = _of_second(grown, ctx.small, ctx.bs, ctx.of)
        return of_x, of_small, None, *of_bs


def _first(x: Tensor, scale: float, halves: Sequence[Tensor]) -> Tensor:
    """Return scale · A, (R, in), in the dtype of x."""
    a = x.new_empty(sum(map(len, halves)), x.shape[1])
    for half, part in zip(halves, torch.split(a, list(map(len, halves))), strict=True):
        torch.mul(half, scale, out=part)
    return a


def _grown(
    x: Tensor, small: Tensor, frozen: Sequence[tuple[Tensor, Tensor | None]], bs: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return x Wᵀ + bias + small Bᵀ of each layer, (N, out)."""
    return tuple(
        functional.linear(x, weight, bias).addmm_(part, b.t())
        for (weight, bias), part, b in zip(frozen, _columns(small, bs), bs, strict=True)
    )


def _of_x(grown: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Return the gradient (N, in) through the frozen weights."""
    of_x = grown[0] @ weights[0]
    for each, weight in zip(grown[1:], weights[1:], strict=True):
        of_x.addmm_(each, weight)
    return of_x


def _of_second(
    grown: Sequence[Tensor], small: Tensor, bs: Sequence[Tensor], like: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients of small (N, R) and of each B, in the dtype of `like`."""
    of_bs = [
        (each.t() @ part).to(like[0].dtype)
        for each, part in zip(grown, _columns(small, bs), strict=True)
    ]
    if len(bs) == 1:
        return grown[0] @ bs[0], of_bs
    of_small = torch.empty_like(small)
    for each, b, part in zip(grown, bs, _columns(of_small, bs), strict=True):
        torch.mm(each, b, out=part)
    return of_small, of_bs


def _of_first(
    of_x: Tensor | None,
    of_small: Tensor,
    saved: tuple[Tensor, Tensor | None, Tensor],
    scale: float,
    like: Sequence[Tensor],
) -> Sequence[Tensor]:
    """Add the adapters' share to the gradient of x; return the gradients of each A."""
    x, mask, a = saved
    if of_x is not None:
        if mask is None:
            of_x.addmm_(of_small, a)
        else:
            of_x.addcmul_(of_small @ a, mask)
    nothing = of_small.new_empty(1, 1)  # beta 0: it is not read
    of_a = torch.addmm(nothing, of_small.t(), _dropped(x, mask), beta=0, alpha=scale)  # (R, in)
    of_a = of_a.to(like[0].dtype)
    return (of_a,) if len(like) == 1 else torch.split(of_a, list(map(len, like)))


def _columns(small: Tensor, halves: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return each layer's columns (N, r) of (N, R)."""
    if len(halves) == 1:
        return (small,)
    return torch.split(small, [b.shape[1] for b in halves], dim=1)


def _dropped(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


def _keep(x: Tensor, dropout: float) -> Tensor:
    """Return 1 where `x` stays and 0 where it is dropped: bytes on CUDA, to save memory.

    torch samples 32 bits or more per element; on a CPU that took a quarter of an update.
    """
    if x.is_cuda:
        return torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - dropout)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    drawn = words.view(torch.int16)[: x.numel()].view(x.shape)  # −2¹⁵ … 2¹⁵ − 1
    return torch.ge(drawn, round(dropout * SIDES) - SIDES // 2, out=torch.empty_like(x))


class AdaptedLinear(peft.Linear):
    """A frozen linear layer with one adapter."""

    recomputed = False
    """Whether the backward pass recomputes its layer; see `_Grown`."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(…, in) → (…, out)."""
        if not _plain(self, args, kwargs):
            found: Tensor = super().forward(x, *args, **kwargs)
            return found
        return _adapted([self], x)[0]

    def beside(self, layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
        """Return the output of each of `layers` for (…, in); equal kinds are computed together."""
        mine, found = _sharing(self), [_sharing(layer) for layer in layers]
        if mine is None or found.count(mine) < 2:
            return [layer(x) for layer in layers]
        alike = [layer for layer, other in zip(layers, found, strict=True) if other == mine]
        made = iter(_adapted(alike, x))
        return [
            next(made) if other == mine else layer(x)
            for layer, other in zip(layers, found, strict=True)
        ]

    def added(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return weight (out, in), scale · A (r, in) and B (out, r) for rollouts.

        None if the layer computes anything else, for example with dropout or a bias.
        """
        base: Any = self.get_base_layer()
        first: Any = self.lora_A
        second: Any = self.lora_B
        if not _plain(self, (), {}) or _share(self) or base.bias is not None:
            return None
        a, b = first[ADAPTER].weight.detach(), second[ADAPTER].weight.detach()
        return base.weight, a * self.scaling[ADAPTER], b

    def rows(self, x: Tensor, start: int, end: int) -> Tensor:
        """Return (…, end − start) float32: only these outputs for (…, in) are computed.

        Multiplied in float32 for every dtype of the weight.
        """
        base: Any = self.get_base_layer()
        if not _plain(self, (), {}):
            found: Tensor = super().forward(x.to(base.weight.dtype))
            return found[..., start:end].float()
        bias = None if base.bias is None else base.bias[start:end]
        second: Any = self.lora_B[ADAPTER].weight
        b = second[start:end]
        return _products([self], x, [(base.weight[start:end].float(), bias)], [b])[0]


class AdaptedConv2d(peft.Conv2d):
    """A frozen convolution with one adapter; one product if patches do not overlap."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(B, in, H, W) → (B, out, h, w)."""
        base: Any = self.get_base_layer()
        tiled = base.kernel_size == base.stride and base.groups == 1 and base.dilation == (1, 1)
        tiled = tiled and base.padding == (0, 0)
        high, wide = base.kernel_size
        if not (tiled and _plain(self, args, kwargs)) or x.shape[2] % high or x.shape[3] % wide:
            found: Tensor = super().forward(x, *args, **kwargs)
            return found
        batch, channels, height, width = x.shape
        grid = x.view(batch, channels, height // high, high, width // wide, wide)
        patches = grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, h·w, in·high·wide)
        (made,) = _adapted([self], patches)
        return made.transpose(1, 2).reshape(batch, -1, height // high, width // wide)


def _plain(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the layer is a frozen weight with one active adapter that is not merged."""
    return (
        not (args or kwargs or layer.disable_adapters or layer.merged or layer.lora_variant)
        and layer.active_adapters == [ADAPTER]
        and not layer.get_base_layer().weight.requires_grad
    )


def _sharing(layer: nn.Module) -> tuple[float, float] | None:
    """Return factor and dropout, which layers that share products have in common, or None."""
    if not isinstance(layer, AdaptedLinear) or not _plain(layer, (), {}):
        return None
    return layer.scaling[ADAPTER], _share(layer)


def _share(layer: Any) -> float:
    """Return the share of its input that a layer currently drops."""
    dropout = layer.lora_dropout[ADAPTER]
    wanted = dropout.p if isinstance(dropout, nn.Dropout) and layer.training else 0.0
    return float(min(round(wanted * SIDES), SIDES - 1) / SIDES)


def _adapted(layers: Sequence[Any], x: Tensor) -> list[Tensor]:
    """Return (…, out) of each layer for (…, in); all have one share and one scale.

    In autocast's dtype if that is on, else in the weight's.
    """
    kind, frozen = x.device.type, []
    for layer in layers:
        base = layer.get_base_layer()
        dtype = base.weight.dtype
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        bias = None if base.bias is None else base.bias.to(dtype)
        frozen.append((base.weight.flatten(1).to(dtype), bias))
    halves = [layer.lora_B[ADAPTER].weight.flatten(1) for layer in layers]
    return _products(layers, x, frozen, halves)


def _products(
    layers: Sequence[Any],
    x: Tensor,
    frozen: Sequence[tuple[Tensor, Tensor | None]],
    second: Sequence[Tensor],
) -> list[Tensor]:
    """Return (…, out) of each layer, for its weight (out, in), bias, and second matrix (out, r)."""
    share = _share(layers[0])
    scale = layers[0].scaling[ADAPTER] / (1 - share)
    flat = x.reshape(-1, x.shape[-1]).to(frozen[0][0].dtype)
    first = [layer.lora_A[ADAPTER].weight.flatten(1) for layer in layers]
    mask = _keep(flat, share) if share else None
    if getattr(layers[0], "recomputed", False):
        passed, small = _Shrunk.apply(flat, mask, scale, *first)  # type: ignore[no-untyped-call]
        made = _Grown.apply(passed, small, frozen, *second)  # type: ignore[no-untyped-call]
    else:
        made = _Product.apply(flat, mask, scale, frozen, *first, *second)  # type: ignore[no-untyped-call]
    return [one.view(*x.shape[:-1], one.shape[-1]) for one in made]
