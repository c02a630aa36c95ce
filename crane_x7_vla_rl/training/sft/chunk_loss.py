"""OpenVLA-OFT's loss: the L1 distance of a predicted chunk from the demonstrated one.

A model and its two heads → a module whose parameters are all that learns. A start without heads
gets new ones; a start from LIBERO, whose actions are steps of a tool, gets a new action head.

Legend: B batch, T steps of a chunk, S pixels of a side, 8 joints.
"""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from crane_x7_vla_rl.actions import Statistics, find_statistics
from crane_x7_vla_rl.policies.base import DEFAULT_UNNORM_KEY
from crane_x7_vla_rl.policies.openvla.model.oft_heads import ActionHead, ProprioProjector
from crane_x7_vla_rl.policies.openvla.model.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.run.oft_evaluate import evaluate_chunk
from crane_x7_vla_rl.policies.openvla.weights import layout, oft_loading
from crane_x7_vla_rl.policies.openvla.weights.loading import Loaded
from crane_x7_vla_rl.robot import DOF
from crane_x7_vla_rl.training.sft.samples import ModelBatch

logger = logging.getLogger(__name__)


class ChunkLoss(nn.Module):
    """Mean L1 distance of normalised actions, over all steps and joints."""

    def __init__(self, model: OpenVLA, head: ActionHead, proprio: ProprioProjector) -> None:
        super().__init__()
        self.model, self.head, self.proprio = model, head, proprio

    @cached_property
    def _scales(self) -> tuple[Statistics, Statistics]:
        """Of actions and of states; the model has its statistics once data are open."""
        stats, key = self.model.norm_stats, DEFAULT_UNNORM_KEY
        return find_statistics(stats, key), find_statistics(stats, key, "proprio")

    def inputs(self, sample: ModelBatch, smoothing: float) -> tuple[Any, ...]:
        """Return what `forward` reads of a sample; there are no bins to smooth."""
        del smoothing
        like = self.head.model.fc2.bias
        action, state = self._scales
        scaled = (state.normalise(sample.state), action.normalise(sample.actions))
        return (sample.pixels, sample.prompts, *(torch.from_numpy(x).to(like) for x in scaled))

    def forward(
        self, pixels: Tensor, prompts: list[Tensor], state: Tensor, actions: Tensor
    ) -> Tensor:
        """Return a scalar for pixels (B, 6, S, S), states (B, 8) and actions (B, T, 8)."""
        heads = self.head, self.proprio
        found = evaluate_chunk(self.model, heads, pixels, prompts, state, actions.shape[1])
        return functional.l1_loss(found, actions)


def is_wanted(configured: str | None, loaded_from: str) -> bool:
    """Return whether a chunk's head learns: as configured, else as the start has it."""
    if configured is None:
        return layout.find(loaded_from).heads() is not None
    return configured == "l1"


def build(loaded: Loaded, resumed: Path | None, film: bool = False) -> ChunkLoss:
    """Return the loss with the heads of the resumed checkpoint, of the start, or new ones.

    Its towers have the FiLM that is stored there, or with `film` a new one.
    """
    model, where = loaded.model, loaded.layout.heads() if resumed is None else resumed
    hidden, like = model.config.text.hidden_size, model.projector.fc3.bias
    head, proprio = oft_loading.new_heads(hidden, DOF, DOF)
    if where is not None:
        oft_loading.read_film(where, model)
        stored = oft_loading.read_heads(where, hidden)
        if stored[0].action_dim == DOF:
            head = stored[0]
        else:
            logger.warning(
                "%s: its action head has %d dimensions; a new one for %d joints is trained",
                where, stored[0].action_dim, DOF,
            )  # fmt: skip
        if stored[1] is not None and stored[1].fc1.in_features == DOF:
            proprio = stored[1]
    if film and not model.vision_backbone.has_film:
        model.vision_backbone.add_film(hidden)
    return ChunkLoss(model, head.float().to(like.device), proprio.float().to(like.device))
