"""Whether both sides of bench_rl observe and compute the same; else speeds are not comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from crane_x7_vla_rl.actions import ACTION_BINS, FIRST_ACTION_TOKEN
from crane_x7_vla_rl.training.rl.ppo import OldSamples, ppo_loss
from rl_bench.ours import Ours
from rl_bench.plain import Policy
from rl_bench.plain_envs import View

SCALE = 0.02
"""Spread of new values for weights that begin at zero and would block gradients: the adapters'
second matrices, the head."""
PREFIX = "base_model.model."
"""PEFT's prefix of the names in `Stack`, which are those of this project's model."""


@dataclass(frozen=True)
class Difference:
    """Largest differences of the two sides."""

    log_prob: float
    """Between the log-probabilities of `generate` and those of this project's model, nats."""
    loss: float
    """Relative to this project's loss."""
    gradient: float
    """Norm of the difference of all gradients / norm of this project's gradients."""


def scenes(ours: Ours, views: Sequence[View]) -> tuple[float, float]:
    """Return the largest differences of the first observations of all environments: of 255 per
    channel, and rad.

    Raises RuntimeError if an instruction differs.
    """
    picture = joints = 0.0
    for group, envs in enumerate(ours.run.env.groups):
        seen = ours.run.env.look(group)
        for row, env in enumerate(envs):
            view = views[env]
            if seen.instructions[row] != view.instruction:
                told = f"{seen.instructions[row]!r} here and {view.instruction!r} there"
                raise RuntimeError(f"environment {env} has the instructions {told}")
            apart = np.abs(np.asarray(seen.images[row], dtype=np.int16) - view.picture)
            picture = max(picture, float(apart.max()))
            joints = max(joints, float(np.abs(seen.state_rad[row] - view.joints_rad).max()))
    return picture, joints


def compare(ours: Ours, policy: Policy) -> Difference:
    """Return how the sides differ on the first group's observations; afterwards weights are equal.

    Raises RuntimeError if they do not have the same adapters.
    """
    agent, config = ours.run.agent, ours.run.config.ppo
    mine, theirs = _named(agent.policy, agent.core.value_head), _named(policy.peft, policy.head)
    _level(mine, theirs)
    seen = ours.run.env.look(0)
    rows = range(len(seen.instructions))
    views = [View(seen.images[i], seen.state_rad[i].astype(float), seen.instructions[i])
             for i in rows]  # fmt: skip
    asked = [policy.read(view) for view in views]
    pixels, prompts = torch.cat([one[0] for one in asked]), [one[1] for one in asked]
    if len({len(prompt) for prompt in prompts}) != 1:
        raise RuntimeError("prompts differ in length, which the plain loop cannot batch")
    spoken = policy.choose(views[0])
    with torch.no_grad():
        thought = agent.module(
            spoken.pixels, [spoken.prompt], spoken.tokens[None].to(pixels.device),
            config.temperature, False,
        )  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    length = ours.run.rollout.codec.answer_length
    tokens = FIRST_ACTION_TOKEN + torch.randint(ACTION_BINS, (len(prompts), length), generator=draw)
    tokens = tokens.to(pixels.device)
    judged = agent.module(pixels, prompts, tokens, config.temperature, config.value.detach)
    drawn = [torch.randn(len(prompts), generator=draw).to(pixels.device) for _ in range(3)]
    taken = OldSamples(
        judged.log_probs.detach(), *drawn, weights=torch.full_like(drawn[0], 1 / len(prompts))
    )
    our_loss = ppo_loss(judged, taken, config).total
    their_loss = ppo_loss(policy.judge(pixels, prompts, tokens), taken, config).total
    for loss in (our_loss, their_loss):
        torch.autograd.backward(loss)
    apart = _length([_gradient(theirs[name]) - _gradient(p) for name, p in mine.items()])
    whole = _length([_gradient(p) for p in mine.values()])
    agent.forget()
    policy.optimizer.zero_grad()
    return Difference(
        float((thought.log_probs[0].cpu() - spoken.log_probs).abs().max()),
        abs(our_loss.item() - their_loss.item()) / abs(our_loss.item()),
        apart / whole,
    )


def _named(policy: nn.Module, head: nn.Module | None) -> dict[str, nn.Parameter]:
    """Return the trained parameters, by names that both sides share."""
    assert head is not None  # the recipe is PPO
    adapters = {n.removeprefix(PREFIX): p for n, p in policy.named_parameters() if p.requires_grad}
    return adapters | {f"value.{name}": p for name, p in head.named_parameters()}


def _level(mine: Mapping[str, nn.Parameter], theirs: Mapping[str, nn.Parameter]) -> None:
    """Sample this side's zero weights again, and copy all to the other side."""
    if odd := sorted(mine.keys() ^ theirs.keys()):
        raise RuntimeError(f"{odd[0]} and {len(odd) - 1} more are trained only on one side")
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in mine.items():
            if not parameter.any():
                parameter.normal_(0, SCALE)
            theirs[name].copy_(parameter)


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _length(gradients: list[Tensor]) -> float:
    return float(sum(gradient.double().square().sum() for gradient in gradients)) ** 0.5
