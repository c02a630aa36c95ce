"""The loss of fine-tuning, and what learns by it: a policy under its loss with AdamW.

A configuration and maybe a checkpoint → an `SftLearner`. Policies of tokens learn by `TokenLoss`,
those with OpenVLA-OFT's head by `chunk_loss.ChunkLoss`.

Legend: B batch, D tokens of a prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from crane_x7_vla_rl.actions import ACTION_BINS, FIRST_ACTION_TOKEN
from crane_x7_vla_rl.policies.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.run.evaluate import evaluate
from crane_x7_vla_rl.policies.openvla.weights.loading import Loaded
from crane_x7_vla_rl.training import learner
from crane_x7_vla_rl.training.checkpoints import chunk_files
from crane_x7_vla_rl.training.errors import ConfigError
from crane_x7_vla_rl.training.learner import Learner, ModelSpec
from crane_x7_vla_rl.training.sft import chunk_loss
from crane_x7_vla_rl.training.sft.chunk_loss import ChunkLoss
from crane_x7_vla_rl.training.sft.config import SftConfig
from crane_x7_vla_rl.training.sft.samples import ModelBatch

WRAPPED: Final = "model."
"""Prefix of the names of the model's own parameters in a loss."""


class TokenLoss(nn.Module):
    """Cross-entropy of demonstrated actions among the 256 action tokens, mean over tokens.

    With `smoothing` the target is a Gaussian over the bins around the demonstrated one, with this
    standard deviation in bins: bins are ordered, and a neighbour is nearly right.
    """

    def __init__(self, model: OpenVLA) -> None:
        super().__init__()
        self.model = model

    def inputs(self, sample: ModelBatch, smoothing: float) -> tuple[Any, ...]:
        """Return what `forward` reads of a sample."""
        return sample.pixels, sample.prompts, sample.tokens, smoothing

    def forward(
        self, pixels: Tensor, prompts: list[Tensor], tokens: Tensor, smoothing: float = 0.0
    ) -> Tensor:
        """Return a scalar, nats; see `run.evaluate` for the shapes."""
        found = evaluate(self.model, pixels, prompts, tokens)
        if not smoothing:
            return -found.log_probs.mean()
        target = gaussian_targets(tokens.to(found.distribution.device), smoothing)
        return -(target * found.distribution).sum(-1).mean()


def gaussian_targets(tokens: Tensor, deviation: float) -> Tensor:
    """Return (B, D, 256) float32, for ids (B, D): probabilities around each, cut at the ends."""
    bins = torch.arange(ACTION_BINS, device=tokens.device)
    away = (bins - (tokens - FIRST_ACTION_TOKEN).unsqueeze(-1)) / deviation
    return torch.softmax(-0.5 * away.square(), dim=-1)


@dataclass(frozen=True, eq=False)
class SftLearner(Learner):
    """A policy that learns from demonstrations; its module is `loss`, maybe wrapped."""

    loss: TokenLoss | ChunkLoss
    loaded: Loaded
    """Its layout is the base's, or the resumed checkpoint's where that holds whole weights."""
    has_adapters: bool

    @property
    def model(self) -> OpenVLA:
        """The model itself, adapters included."""
        return self.loaded.model

    @property
    def like(self) -> Tensor:
        """A tensor with the device and dtype of what the model reads."""
        return self.model.projector.fc3.bias

    def update(self, rate: float) -> None:
        """Update the weights with the gradients at this learning rate, and drop the gradients."""
        for group in self.optimizer.param_groups:
            group[learner.RATE] = rate
        self.move()

    def backward(self, inputs: Sequence[Any], share: float, last: bool) -> Tensor:
        """Add `share` of the gradient of the loss of `inputs`; return that loss, ().

        Processes add up their gradients in the `last` of an update's backward passes alone.
        """
        with self.accumulating(last):
            loss: Tensor = self.module(*inputs)
            torch.autograd.backward(loss * share)
        return loss.detach()

    def tensors(self, step: int) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """Return the policy's adapters, or all its weights, and other weights by file.

        See `kept`; the others are OpenVLA-OFT's heads after `step` updates.
        """
        return chunk_files.split(self.kept(self.has_adapters), WRAPPED, step)


def build(config: SftConfig, accelerator: Accelerator, resumed: Path | None) -> SftLearner:
    """Return a learner with the weights of the base, or of the resumed checkpoint.

    Raises what `learner.prepare` does, and ConfigError for another image size than the model's.
    """
    training = config.training
    spec = ModelSpec(config.policy.model, config.lora, training)
    is_chunk = chunk_loss.is_wanted(config.policy.action_head, str(resumed or config.policy.model))
    if config.policy.film and not is_chunk:
        raise ConfigError("policy.film needs actions from OpenVLA-OFT's head; add --action-head l1")
    loaded = learner.prepare(spec, accelerator.device, resumed, tokens=not is_chunk)
    _check_size(config, loaded.model)
    loss: TokenLoss | ChunkLoss = TokenLoss(loaded.model)
    if is_chunk:
        loss = chunk_loss.build(loaded, resumed, config.policy.film)
    module = learner.spread(loss, training.sharding, accelerator)
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        learning,
        lr=training.learning_rate,
        weight_decay=training.weight_decay,
        # One pass over memory instead of one per operation; on a CPU not the default.
        fused=not any(isinstance(parameter, DTensor) for parameter in learning),
    )
    torch.manual_seed(training.seed + accelerator.process_index)
    return SftLearner(
        accelerator, module, optimizer, training.max_grad_norm, loss, loaded, config.lora.enabled
    )


def _check_size(config: SftConfig, model: OpenVLA) -> None:
    size = model.config.image_size
    if config.data.image_size != f"{size}x{size}":
        raise ConfigError(
            f"data.image_size is {config.data.image_size}, but {config.policy.model} reads"
            f" {size}x{size}; give --image-size {size}x{size}"
        )
