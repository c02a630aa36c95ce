"""Frozen layers with adapters, computed in fewer passes over memory than PEFT's layers.

`lora` adds them to a model. Activations → activations. They are PEFT's layers: names of parameters,
merging and disabling of adapters are PEFT's. The results are the same, but

- dropout's and the adapter's factors are multiplied into the small second matrix, not the outputs;
- dropout samples 16 bits per element on a CPU;
- the adapter's product also adds its output, and the gradient of its input likewise;
- a convolution whose patches do not overlap is one product over patches;
- a head can compute a part of its rows.

Legend: … batch and positions, N all of them, r rank.
"""

from __future__ import annotations

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
    """x Wᵀ + bias + (mask ∘ x) Aᵀ Bᵀ, where W and bias are frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """(N, in), (out, in), (out,), (r, in), (out, r), (N, in) → (N, out), all in one dtype."""
        small = (x if mask is None else x * mask) @ a.t()  # (N, r)
        ctx.save_for_backward(x, weight, a, b, mask, small)
        return functional.linear(x, weight, bias).addmm_(small, b.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grown: Tensor) -> tuple[Tensor | None, ...]:
        """(N, out) → gradients of x, A and B."""
        x, weight, a, b, mask, small = ctx.saved_tensors
        of_small = grown @ b  # (N, r)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = grown @ weight
            if mask is None:
                of_x.addmm_(of_small, a)
            else:
                of_x.addcmul_(of_small @ a, mask)
        dropped = x if mask is None else x * mask
        return of_x, None, None, of_small.t() @ dropped, grown.t() @ small, None


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

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(…, in) → (…, out)."""
        if not _plain(self, args, kwargs):
            found: Tensor = super().forward(x, *args, **kwargs)
            return found
        base: Any = self.get_base_layer()
        return _adapted(self, x, base.weight, base.bias, slice(None))

    def rows(self, x: Tensor, start: int, end: int) -> Tensor:
        """Return (…, end − start) float32: only these outputs for (…, in) are computed.

        Multiplied in float32 for every dtype of the weight.
        """
        base: Any = self.get_base_layer()
        if not _plain(self, (), {}):
            found: Tensor = super().forward(x.to(base.weight.dtype))
            return found[..., start:end].float()
        bias = None if base.bias is None else base.bias[start:end]
        return _adapted(self, x, base.weight[start:end].float(), bias, slice(start, end))


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
        made = _adapted(self, patches, base.weight.flatten(1), base.bias, slice(None))
        return made.transpose(1, 2).reshape(batch, -1, height // high, width // wide)


def _plain(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the layer is a frozen weight with one active adapter that is not merged."""
    return (
        not (args or kwargs or layer.disable_adapters or layer.merged or layer.lora_variant)
        and layer.active_adapters == [ADAPTER]
        and not layer.get_base_layer().weight.requires_grad
    )


def _adapted(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: slice) -> Tensor:
    """Return (…, rows) for (…, in); in autocast's dtype if that is on, else in the weight's."""
    kind, dtype = x.device.type, weight.dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    dropout = layer.lora_dropout[ADAPTER]
    wanted = dropout.p if isinstance(dropout, nn.Dropout) and layer.training else 0.0
    share = min(round(wanted * SIDES), SIDES - 1) / SIDES
    flat = x.reshape(-1, x.shape[-1]).to(dtype)
    a = layer.lora_A[ADAPTER].weight.flatten(1)
    b = layer.lora_B[ADAPTER].weight.flatten(1)[rows] * (layer.scaling[ADAPTER] / (1 - share))
    made: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
        flat,
        weight.to(dtype),
        None if bias is None else bias.to(dtype),
        a.to(dtype),
        b.to(dtype),
        _keep(flat, share) if share else None,
    )
    return made.view(*x.shape[:-1], made.shape[-1])
