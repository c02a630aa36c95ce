"""Llama, as OpenVLA uses it, with a static key-value cache. Embeddings → final hidden states.

Own code, because inference needs features that transformers' Llama lacks: joined projections, a
cache written in place at slots known when a CUDA graph is captured, a last layer that computes only
the positions that are read, and a head cut to the action rows. The pass in this module calls the
modules, with gradients; `inference` has the one without. Names of parameters are those of the
checkpoint. Rotary frequencies are kept in float32 for every dtype of the model: in bfloat16 they
move the logits by up to 1.4.

Legend: B batch, T positions of this pass, S positions seen so far, H hidden size, h heads,
g key-value heads, d channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from crane_x7_vla_rl.policies.openvla.model import fused
from crane_x7_vla_rl.policies.openvla.model.config import LlamaConfig
from crane_x7_vla_rl.policies.openvla.model.matrices import LayerMatrices, matrix, outputs


class Cache:
    """Keys and values of every layer, at fixed addresses."""

    def __init__(self, config: LlamaConfig, batch: int, length: int, like: Tensor) -> None:
        size = (2, batch, length, config.num_key_value_heads, config.head_dim)
        self.length = length
        self._all = like.new_zeros(config.num_hidden_layers, *size)
        self.layers = self._all.unbind(0)
        """Keys and values of each layer: (2, B, length, g, d)."""

    def seen(self, layer: int, end: int, window: int | None) -> tuple[Tensor, Tensor]:
        """Return keys and values of the first `window` slots, else of those up to `end`."""
        keys, values = self.layers[layer]
        return keys[:, : window or end], values[:, : window or end]

    def blank(self, start: int, end: int) -> None:
        """Zero slots that a mask hides: a NaN in them would spread through the mask."""
        self._all[:, :, :, start:end] = 0


@dataclass(frozen=True, eq=False)
class Pass:
    """Inputs that all layers share in one pass over T positions."""

    cos: Tensor
    """(B or 1, T, 1, d)."""
    sin: Tensor
    """(B or 1, T, 1, d), the first half negated."""
    mask: Tensor | None
    """(B or 1, 1, T, S) additive; None if each position sees all before it, or T is 1."""
    causal: bool = True
    """False: each position sees all others, before and after, except those that the mask hides."""
    keep: int | None = None
    """Number of positions that are read: the last ones, or those of `read`; None for all."""
    read: Tensor | None = None
    """(B, keep) int64: the positions that are read, if they differ from row to row."""
    keep_mask: Tensor | None = None
    """(B or 1, 1, keep, S) additive."""
    cache: Cache | None = None
    start: int = 0
    """Slot of the first position in the cache."""
    window: int | None = None
    """Number of the cache's slots in the mask; None for those up to the last position."""

    def kept(self, x: Tensor) -> Tensor:
        """(B, T, H) → (B, keep, H): the positions that are read."""
        if self.read is None:
            return x[:, -(self.keep or 0) :]
        return x.gather(1, self.read.unsqueeze(-1).expand(-1, -1, x.shape[-1]))

    def kept_angles(self) -> tuple[Tensor, Tensor]:
        """Return cos and sin of these positions, each (B or 1, keep, 1, d)."""
        if self.read is None:
            return self.cos[:, -(self.keep or 0) :], self.sin[:, -(self.keep or 0) :]
        return self.cos[0, self.read], self.sin[0, self.read]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, T, heads, d) by its position; `sin` contains the sign of each half."""
    return fused.rotate(x, cos, sin)


class RmsNorm(nn.Module):
    """Root-mean-square norm, computed in float32 inside."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(…, H) → (…, H)."""
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class SelfAttention(nn.Module):
    """Causal attention with rotary positions."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        inner, keys = self.heads * self.head_dim, self.key_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def turned(self, x: Tensor, this: Pass, part: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return query (B, T, h, d), key and value (B, T, g, d), the first two rotated.

        With `part`, the query covers only the positions that are read.
        """
        if part:
            made = [self.q_proj(this.kept(x)), *outputs(x, self.k_proj, self.v_proj)]
        else:
            made = outputs(x, self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (one.view(*one.shape[:2], -1, self.head_dim) for one in made)
        cos, sin = this.kept_angles() if part else (this.cos, this.sin)
        return rotate(query, cos, sin), rotate(key, this.cos, this.sin), value

    def mix(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool
    ) -> Tensor:
        """Return (B, T, h·d): attention of queries (B, T, h, d) to (B, S, g, d)."""
        mixed = functional.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=mask,
            is_causal=causal and mask is None and query.shape[1] > 1,
            enable_gqa=self.heads != self.key_heads,
        )  # (B, h, T, d)
        return mixed.transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    """Gated linear unit with SiLU."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm and around a residual."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.mlp = Mlp(config)
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)

    def joined(self, move: bool) -> LayerMatrices:
        """Return this layer's products for inference; may `move` weights, see `join_weights`."""
        attention, mlp = self.self_attn, self.mlp
        return LayerMatrices(
            qkv=matrix(attention.q_proj, attention.k_proj, attention.v_proj, move=move),
            out=matrix(attention.o_proj),
            gate_up=matrix(mlp.gate_proj, mlp.up_proj, move=move),
            down=matrix(mlp.down_proj),
        )

    def forward(self, x: Tensor, this: Pass, last: bool) -> Tensor:
        """(B, T, H) → (B, T, H), or the positions that are read in the last layer."""
        part = last and this.keep is not None
        query, key, value = self.self_attn.turned(self.input_layernorm(x), this, part)
        mask = this.keep_mask if part else this.mask
        x = this.kept(x) if part else x
        x = x + self.self_attn.o_proj(self.self_attn.mix(query, key, value, mask, this.causal))
        hidden = self.post_attention_layernorm(x)  # (B, T, H)
        gate, up = outputs(hidden, self.mlp.gate_proj, self.mlp.up_proj)  # (B, T, inner)
        summed: Tensor = x + self.mlp.down_proj(fused.gated(gate, up))
        return summed


class LlamaModel(nn.Module):
    """Embeddings, layers and final norm."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.checkpointing = False

    def joined(self, move: bool = True) -> list[LayerMatrices]:
        """Return the products of every layer for inference; may `move` weights."""
        return [layer.joined(move) for layer in self.layers if isinstance(layer, DecoderLayer)]

    def forward(self, x: Tensor, this: Pass) -> Tensor:
        """Embeddings (B, T, H) → without a cache, final hidden states (B, T or keep, H)."""
        count = len(self.layers)
        for index, layer in enumerate(self.layers):
            run = partial(layer, this=this, last=index == count - 1)
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(run, x, use_reentrant=False)
            else:
                x = run(x)
        normed: Tensor = self.norm(x)
        return normed


@runtime_checkable
class Rows(Protocol):
    """A head that can compute a part of its outputs."""

    def rows(self, x: Tensor, start: int, end: int) -> Tensor:
        """(…, H) → (…, end − start) float32."""
        ...


class Llama(nn.Module):
    """The language model with its head."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


def rotary_table(config: LlamaConfig, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and signed sin, each (length, d) in the dtype of `like`, computed in float32."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=like.device)
    frequencies = 1.0 / (config.rope_theta ** (exponents / config.head_dim))
    positions = torch.arange(length, dtype=torch.float32, device=like.device)
    angles = torch.outer(positions, frequencies)  # (length, d / 2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], -1).to(like.dtype), torch.cat([-sin, sin], -1).to(like.dtype)
