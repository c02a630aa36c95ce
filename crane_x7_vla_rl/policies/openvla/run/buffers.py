"""Fixed tensors that the steps of a rollout share. Inputs of a call → its tokens and logits.

They keep the last call: images and prompt with their keys and values, and its logits.

Legend: B batch, P prefix slots, L text slots, D steps.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crane_x7_vla_rl.actions import ACTION_BINS
from crane_x7_vla_rl.policies.openvla.model.config import OpenVLAConfig
from crane_x7_vla_rl.policies.openvla.model.language import Cache
from crane_x7_vla_rl.policies.openvla.run.replay import Replay
from crane_x7_vla_rl.policies.openvla.run.sequence import Prompts, Span

MASK_STEP = 16
"""Attention on CUDA copies a mask, in each layer, if its width is not a multiple of this."""
SLACK = 64
"""Slots of a cache beyond its first prompt, so that a longer one rarely reallocates it."""


@dataclass(frozen=True)
class Answer:
    """What the decode of a call depends on beside the buffers' contents."""

    prompt: Span
    padded: bool
    """Whether any prompt has a pad."""
    steps: int
    noisy: bool
    """Whether tokens are sampled."""


class Buffers:
    """Fixed tensors of one batch size, which the graphs read and write."""

    def __init__(
        self, config: OpenVLAConfig, like: Tensor, batch: int, prefix: int, length: int, steps: int
    ) -> None:
        """`like` has the model's dtype and device."""
        self.batch, self.prefix, self.steps = batch, prefix, steps
        self.length = min(prefix + length + steps + SLACK, config.context)
        self.pixels: Tensor | None = None
        self.patches = like.new_zeros(batch, prefix - 1, config.text.hidden_size)
        self.ids = torch.zeros(batch, length + SLACK, dtype=torch.int64, device=like.device)
        self.pads = torch.zeros(batch, dtype=torch.int64, device=like.device)
        self.cache = Cache(config.text, batch, self.length, like)
        self.hidden = like.new_zeros(batch, config.text.hidden_size)
        self.logits = torch.zeros(batch, steps, ACTION_BINS, device=like.device)
        self.noise = torch.zeros_like(self.logits)
        self.temperature = torch.ones((), device=like.device)
        self.tokens = torch.zeros(batch, steps, dtype=torch.int64, device=like.device)
        self.log_probs = torch.zeros(batch, steps, device=like.device)
        self.settled = torch.zeros((), dtype=torch.bool, device=like.device)
        """Whether the last pass chose the tokens that it was given."""
        self.replays: OrderedDict[Hashable, Replay] = OrderedDict()
        self.pool: Any = torch.cuda.graph_pool_handle() if like.is_cuda else None
        self.held_prefix: Hashable = None
        """Source of the prefix slots in addition to `pixels` or `patches`; None: nothing."""
        self.held_prompt: Prompts | None = None

    def fits(self, length: int, steps: int) -> bool:
        """Whether prompts of `length` and `steps` tokens fit."""
        return (
            length <= self.ids.shape[1]
            and steps <= self.steps
            and self.prefix + length + steps <= self.length
        )

    def window(self, end: int) -> int:
        """Return how many of the cache's slots a masked pass reads whose last slot is `end` − 1."""
        return min(-(-end // MASK_STEP) * MASK_STEP, self.length)
