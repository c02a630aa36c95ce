"""The two vision towers, DINOv2 and SigLIP: 6-channel pixels → features of their patches.

Names of parameters are those of the checkpoint (timm's, with qkv in one matrix), so that weights
and LoRA keys load one to one. The features are the output of each tower's last block but one,
without final norm; class and register tokens are dropped. The last block, the final norm and
SigLIP's pooling head exist to hold their weights and are never computed.

Training calls each block; without gradients `Tower` calls what is in the blocks, so that a sum and
the norm of the next half are one step, `AddNorm`: a kernel on CUDA, torch's operations elsewhere.

With `Film` in each block, features depend on the instruction too: OpenVLA-OFT+
(https://arxiv.org/abs/2502.19645), of which `weights.oft_loading` reads the weights.

Legend: B batch, I images per sample, S pixels of a side, N patches (224 and 256 in the
released model), C a tower's channels, H hidden size of the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from crane_x7_vla_rl.policies.openvla.model.config import TowerConfig

NORM_EPS = 1e-6

AddNorm = Callable[[Tensor, Tensor, Tensor | None, nn.LayerNorm], tuple[Tensor, Tensor]]
"""x, delta, factor per channel or None, norm → x + delta · factor and its norm; all (B, N, C)."""


def add(x: Tensor, delta: Tensor, factor: Tensor | None) -> Tensor:
    """Return x + delta · factor, (B, N, C)."""
    return x + delta if factor is None else torch.addcmul(x, delta, factor)


def add_norm(
    x: Tensor, delta: Tensor, factor: Tensor | None, norm: nn.LayerNorm
) -> tuple[Tensor, Tensor]:
    """The `AddNorm` of torch's operations."""
    total = add(x, delta, factor)
    return total, norm(total)


class Attention(nn.Module):
    """Self-attention of every token with every other."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) → (B, N, C)."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, N, C / heads)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))
        return projected


class Mlp(nn.Module):
    """Two linear layers with erf GELU; timm's SigLIP would use tanh, the checkpoint's does not."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C)."""
        projected: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return projected


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C)."""
        return x * self.scale_factor


class Film(nn.Module):
    """Feature-wise modulation by the instruction; new ones change nothing.

    Its embedding (B, H), the mean of the prompt's, gives a factor and an offset per channel.
    """

    def __init__(self, hidden: int, dim: int) -> None:
        super().__init__()
        self.scale = nn.Linear(hidden, dim)
        self.shift = nn.Linear(hidden, dim)
        for layer in (self.scale, self.shift):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """(B, N, C) and (B, H) → (B, N, C)."""
        factor, offset = self.scale(told)[:, None], self.shift(told)[:, None]  # (B, 1, C)
        modulated: Tensor = x * (1 + factor) + offset
        return modulated


class Block(nn.Module):
    """One pre-norm transformer block, modulated between its halves if it has a `film`."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, config.num_heads)
        self.ls1 = LayerScale(dim) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, config.mlp_dim)
        self.ls2 = LayerScale(dim) if config.layer_scale else nn.Identity()
        self.film: Film | None = None

    def modulated(self, x: Tensor, told: Tensor | None) -> Tensor:
        """Return x (B, N, C) as the instruction's embedding (B, H) modulates it, or as it is."""
        if self.film is None:
            return x
        if told is None:
            raise ValueError("towers with FiLM need the instruction's embedding")
        modulated: Tensor = self.film(x, told)
        return modulated

    def forward(self, x: Tensor, told: Tensor | None = None) -> Tensor:
        """(B, N, C), and (B, H) if there is a `film`, → (B, N, C)."""
        x = self.modulated(x + self.ls1(self.attn(self.norm1(x))), told)
        summed: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return summed


class PatchEmbed(nn.Module):
    """A linear map of each patch: a convolution in the checkpoint, computed as one product.

    The result is contiguous. That of the convolution would be transposed, and so would every sum
    of the tower be: each norm copies such a tensor, each sum writes it column by column.
    """

    def __init__(self, dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, dim, patch_size, patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, N, C)."""
        if type(self.proj) is not nn.Conv2d:  # PEFT has wrapped it
            embedded: Tensor = self.proj(pixels)
            return embedded.flatten(2).transpose(1, 2).contiguous()
        size = self.patch_size
        side = pixels.shape[-1] // size
        tiles = pixels.view(len(pixels), 3, side, size, side, size)
        patches = tiles.permute(0, 2, 4, 1, 3, 5).reshape(len(pixels), side * side, -1)
        return functional.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class AttentionPool(nn.Module):
    """Holds the weights of SigLIP's pooling head, which nothing computes."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.latent = nn.Parameter(torch.zeros(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, config.mlp_dim)


class Tower(nn.Module):
    """One vision transformer, up to its last block but one."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.patch_embed = PatchEmbed(dim, config.patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.patches, dim))
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if config.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, config.registers, dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        if config.attention_pool:
            self.attn_pool = AttentionPool(config)
        self.prefix = int(config.class_token) + config.registers
        self.checkpointing = False

    def forward(
        self, pixels: Tensor, add_norm: AddNorm | None = None, told: Tensor | None = None
    ) -> Tensor:
        """(B, 3, S, S), normalised for this tower, and (B, H) for FiLM, → (B, N, C).

        With `add_norm`, the same without gradients in fewer operations.
        """
        x = self._embed(pixels)  # (B, prefix + N, C)
        if add_norm is not None:
            return self._infer(x, add_norm, told)[:, self.prefix :]
        for block in self.blocks[:-1]:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, told, use_reentrant=False)
            else:
                x = block(x, told)
        return x[:, self.prefix :]

    def _embed(self, pixels: Tensor) -> Tensor:
        x: Tensor = self.patch_embed(pixels) + self.pos_embed  # (B, N, C)
        if not self.prefix:
            return x
        tokens = (self.cls_token, self.reg_token)
        return torch.cat([*(each.expand(len(x), -1, -1) for each in tokens), x], dim=1)

    def _infer(self, x: Tensor, add_norm: AddNorm, told: Tensor | None) -> Tensor:
        """(B, prefix + N, C) through all blocks but the last."""
        blocks: list[Any] = list(self.blocks[:-1])
        normed = blocks[0].norm1(x) if blocks else x
        for index, block in enumerate(blocks):
            delta, factor = block.attn(normed), _factor(block.ls1)
            if block.film is None:
                x, normed = add_norm(x, delta, factor, block.norm2)
            else:
                x = block.modulated(add(x, delta, factor), told)
                normed = block.norm2(x)
            delta, factor = block.mlp(normed), _factor(block.ls2)
            if index + 1 == len(blocks):
                return add(x, delta, factor)
            x, normed = add_norm(x, delta, factor, blocks[index + 1].norm1)
        return x


def _factor(scale: nn.Module) -> Tensor | None:
    return scale.scale_factor if isinstance(scale, LayerScale) else None


class VisionBackbone(nn.Module):
    """Both towers on the same images; on CUDA each has its own stream."""

    def __init__(self, dinov2: TowerConfig, siglip: TowerConfig) -> None:
        super().__init__()
        self.featurizer = Tower(dinov2)
        self.fused_featurizer = Tower(siglip)
        self._patches = dinov2.patches
        self._second_stream: torch.cuda.Stream | None = None

    @property
    def has_film(self) -> bool:
        """Whether the features depend on the instruction."""
        return any(block.film is not None for block in self._blocks())

    def add_film(self, hidden: int) -> None:
        """Give each computed block a `Film` of embeddings (B, hidden) that changes nothing yet."""
        for block in self._blocks():
            like = block.norm1.weight
            block.film = Film(hidden, len(like)).to(device=like.device, dtype=like.dtype)

    def _blocks(self) -> Iterator[Block]:
        for tower in (self.featurizer, self.fused_featurizer):
            for block in tower.blocks[:-1]:
                assert isinstance(block, Block)
                yield block

    def forward(
        self, pixels: Tensor, add_norm: AddNorm | None = None, told: Tensor | None = None
    ) -> Tensor:
        """(B, 6·I, S, S), DINOv2's channels first, → (B, I·N, both towers' channels).

        `told` (B, H) is the instruction's embedding, for towers with FiLM. With `add_norm`, the
        same without gradients in fewer operations.
        """
        batch, channels, height, width = pixels.shape
        pixels = pixels.reshape(batch * channels // 6, 6, height, width)
        if told is not None:
            told = told.repeat_interleave(channels // 6, dim=0)  # (B·I, H)
        first, second = pixels[:, :3], pixels[:, 3:]
        if pixels.is_cuda and not torch.is_grad_enabled():
            features = self._on_two_streams(first, second, add_norm, told)
        else:
            features = (
                self.featurizer(first, add_norm, told),
                self.fused_featurizer(second, add_norm, told),
            )
        return torch.cat(features, dim=2).view(batch, channels // 6 * self._patches, -1)

    def _on_two_streams(
        self, first: Tensor, second: Tensor, add_norm: AddNorm | None, told: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Compute SigLIP in parallel with DINOv2; may run inside the capture of a graph.

        The two waits order every reuse of memory between the streams.
        """
        here = torch.cuda.current_stream(first.device)
        if self._second_stream is None or self._second_stream.device != first.device:
            self._second_stream = torch.cuda.Stream(first.device)  # type: ignore[no-untyped-call]
        there = self._second_stream
        there.wait_stream(here)
        with torch.cuda.stream(there):
            siglip = self.fused_featurizer(second, add_norm, told)
        dinov2 = self.featurizer(first, add_norm, told)
        here.wait_stream(there)
        return dinov2, siglip
