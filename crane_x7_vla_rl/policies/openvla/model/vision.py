"""The two vision towers, DINOv2 and SigLIP: 6-channel pixels → features of their patches.

Names of parameters are those of the checkpoint (timm's, with qkv in one matrix), so that weights
and LoRA keys load one to one. The features are the output of each tower's last block but one,
without final norm; class and register tokens are dropped. The last block, the final norm and
SigLIP's pooling head exist to hold their weights and are never computed.

Legend: B batch, I images per sample, S pixels of a side, N patches (224 and 256 in the
released model), C a tower's channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from crane_x7_vla_rl.policies.openvla.model.config import TowerConfig

NORM_EPS = 1e-6


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


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, config.num_heads)
        self.ls1 = LayerScale(dim) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, config.mlp_dim)
        self.ls2 = LayerScale(dim) if config.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) → (B, N, C)."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        summed: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return summed


class PatchEmbed(nn.Module):
    """Holds the convolution under the checkpoint's name for it."""

    def __init__(self, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, N, C)."""
        embedded: Tensor = self.proj(pixels)
        return embedded.flatten(2).transpose(1, 2)


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

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S), normalised for this tower, → (B, N, C)."""
        x: Tensor = self.patch_embed(pixels) + self.pos_embed  # (B, N, C)
        if self.prefix:
            batch = len(x)
            tokens = [self.cls_token.expand(batch, -1, -1), self.reg_token.expand(batch, -1, -1)]
            x = torch.cat([*tokens, x], dim=1)  # (B, prefix + N, C)
        for block in self.blocks[:-1]:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x[:, self.prefix :]


class VisionBackbone(nn.Module):
    """Both towers on the same images; on CUDA each has its own stream."""

    def __init__(self, dinov2: TowerConfig, siglip: TowerConfig) -> None:
        super().__init__()
        self.featurizer = Tower(dinov2)
        self.fused_featurizer = Tower(siglip)
        self._patches = dinov2.patches
        self._second_stream: torch.cuda.Stream | None = None

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 6·I, S, S), DINOv2's channels first, → (B, I·N, both towers' channels)."""
        batch, channels, height, width = pixels.shape
        pixels = pixels.reshape(batch * channels // 6, 6, height, width)
        first, second = pixels[:, :3], pixels[:, 3:]
        if pixels.is_cuda and not torch.is_grad_enabled():
            features = self._on_two_streams(first, second)
        else:
            features = self.featurizer(first), self.fused_featurizer(second)
        return torch.cat(features, dim=2).view(batch, channels // 6 * self._patches, -1)

    def _on_two_streams(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Compute SigLIP in parallel with DINOv2; may run inside the capture of a graph.

        The two waits order every reuse of memory between the streams. Unverified: it was written
        without a CUDA device.
        """
        here = torch.cuda.current_stream(first.device)
        if self._second_stream is None or self._second_stream.device != first.device:
            self._second_stream = torch.cuda.Stream(first.device)  # type: ignore[no-untyped-call]
        there = self._second_stream
        there.wait_stream(here)
        with torch.cuda.stream(there):
            siglip = self.fused_featurizer(second)
        dinov2 = self.featurizer(first)
        here.wait_stream(there)
        return dinov2, siglip
