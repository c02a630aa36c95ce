"""A separate critic learns from a rollout again, after the policy has.

What it saw, returns and minibatches → a moved critic. The policy computes nothing and is unchanged.
Numbers continue those of `grpo`.

29. A critic that shares nothing with the policy may see every sample more often than the policy,
    which would move too far: https://arxiv.org/abs/2009.04416 (its value phase)

Legend: B samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from crane_x7_vla_rl.training.errors import NotFiniteError, PpoError
from crane_x7_vla_rl.training.rl import ppo
from crane_x7_vla_rl.training.rl.agent import Agent
from crane_x7_vla_rl.training.rl.buffer import Buffer
from crane_x7_vla_rl.training.rl.ppo_config import ValueConfig

Minibatches = Iterable[tuple[Sequence[Tensor], float]]
"""The samples of this process in each micro-batch of a minibatch, and what one of them weighs."""


def repeat(
    agent: Agent, buffer: Buffer, config: ValueConfig, minibatches: Minibatches, rate: float
) -> None:
    """Move the critic alone, at this share of its learning rate; every process must call it.

    Raises NotFiniteError before a step that would make it NaN, and PpoError.
    """
    critic = agent.core.value_head
    if critic is None or buffer.seen is None:
        raise PpoError("ppo.value.extra_epochs needs a critic that is own or state")
    if isinstance(agent.module, FSDPModule):
        raise PpoError(
            "ppo.value.extra_epochs is above 0, but a critic that fsdp has split cannot learn"
            " alone; set it to 0, or training.sharding to ddp"
        )
    for parts, weight in minibatches:
        samples = torch.cat(list(parts))
        loss = _loss(agent, buffer, config, samples) * weight
        torch.autograd.backward(loss)
        for parameter in critic.parameters():
            if parameter.grad is not None:
                parameter.grad = agent.sum(parameter.grad)
        norm = agent.clip()
        if not math.isfinite(norm):
            agent.forget()
            raise NotFiniteError(
                f"ppo.value.extra_epochs: the critic's gradient is {norm}, expected a finite"
                " number; resume from the last checkpoint with a lower ppo.value.learning_rate"
            )
        agent.step(0.0, rate)


def _loss(agent: Agent, buffer: Buffer, config: ValueConfig, samples: Tensor) -> Tensor:
    """Return the sum of the losses of flat samples (B,), maybe none of them."""
    device = agent.accelerator.device
    values: Tensor = agent.core.value_head(buffer.seen_by_critic(samples, device))  # type: ignore[misc]
    old, returns = (x.flatten()[samples].to(device) for x in (buffer.values, buffer.returns))
    return ppo.value_loss(values, old, returns, config).sum()
