"""The language model without gradients: joined products, a cache in place, few kernels.

Embeddings → final hidden states, keys and values into the cache: the same function as
`LlamaModel.forward`, which training and `evaluate` use. On CUDA the operations between the products
run in the kernels of `kernels`, elsewhere as torch's operations.

Legend: as in `language`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from crane_x7_vla_rl.policies.openvla.model.language import (
    DecoderLayer,
    LlamaModel,
    Pass,
    RmsNorm,
    SelfAttention,
    rotate,
)
from crane_x7_vla_rl.policies.openvla.model.matrices import LayerMatrices, Matrix
from crane_x7_vla_rl.policies.openvla.run import plain
from crane_x7_vla_rl.policies.openvla.run.device import kernels_for, launching_on
from crane_x7_vla_rl.policies.openvla.run.low_bit import LowBit


def infer(model: LlamaModel, x: Tensor, this: Pass, matrices: list[LayerMatrices]) -> Tensor:
    """Embeddings (B, T, H) → final hidden states (B, T or keep, H)."""
    with launching_on(x):
        return _layers(model, x, this, matrices, kernels_for(x))


def _layers(
    model: LlamaModel, x: Tensor, this: Pass, matrices: list[LayerMatrices], kernels: Any
) -> Tensor:
    layers = cast(list[DecoderLayer], list(model.layers))
    normed: Tensor = layers[0].input_layernorm(x)  # (B, T, H)
    for index, (layer, products) in enumerate(zip(layers, matrices, strict=True)):
        last = index + 1 == len(layers)
        following = model.norm if last else layers[index + 1].input_layernorm
        query, key, value = _attend_to(layer.self_attn, products.qkv(normed), this, index, kernels)
        mask = this.mask
        if last and this.keep is not None:
            x, query, mask = x[:, -this.keep :], query[:, -this.keep :], this.keep_mask
        mixed = layer.self_attn.mix(query, key, value, mask, this.causal)  # (B, T, h·d)
        x, normed = _add_norm(products.out, x, mixed, layer.post_attention_layernorm, kernels)
        inner = _gated(products.gate_up(normed), kernels)  # (B, T, inner)
        x, normed = _add_norm(products.down, x, inner, following, kernels)
    return normed


def _attend_to(
    attention: SelfAttention, joined: Tensor, this: Pass, index: int, kernels: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return query (B, T, h, d), keys and values (B, S, g, d), the first two rotated."""
    batch, length, _ = joined.shape
    qkv = joined.view(batch, length, -1, attention.head_dim)  # (B, T, h + 2·g, d)
    if this.cache is not None:
        turn_into = (kernels or plain).turn_into
        query = turn_into(qkv, this.cos, this.sin, this.cache.layers[index], this.start)
        return query, *this.cache.seen(index, this.start + length, this.window)
    both = attention.heads + attention.key_heads
    turned = rotate(qkv[:, :, :both], this.cos, this.sin)  # (B, T, h + g, d)
    return turned[:, :, : attention.heads], turned[:, :, attention.heads :], qkv[:, :, both:]


def _add_norm(
    product: Matrix, x: Tensor, inner: Tensor, norm: RmsNorm, kernels: Any
) -> tuple[Tensor, Tensor]:
    """Return x + product(inner), and its norm."""
    if kernels is None:
        x = product.onto(x, inner)
        return x, norm(x)
    parts = product.parts(inner) if isinstance(product, LowBit) else product(inner)[None]
    total, normed = kernels.add_parts_norm(x, parts, norm.weight, norm.eps)
    return total, normed


def _gated(gate_up: Tensor, kernels: Any) -> Tensor:
    """Return silu(gate) · up."""
    return torch.as_tensor((kernels or plain).gated(gate_up))
