"""PPO's arithmetic: advantages from rewards and values, and the loss of actions that were taken.

Tensors of a rollout and of `run.evaluate` → advantages, returns, and losses with gradients, by
which `update` moves the weights. Each detail has a number, and a test that names it; 17 and on are
in `update`.

1.  Advantages are generalised: Σ (γλ)^k δ, https://arxiv.org/abs/1506.02438
2.  The value after a truncated episode is that of its final observation; after a terminated one
    it is 0, https://arxiv.org/abs/1712.00378. Neither passes anything to the next episode. (CleanRL
    and RL4VLA take truncation for termination.)
3.  Discarded steps (a crashed worker's) have no advantage, and nothing passes through them.
4.  Returns, the value head's targets, are advantages + values, not rewards to go:
    https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/ (its detail 5)
5.  Advantages are normalised once over the whole batch of all processes, not by minibatch (as
    there, detail 7): the result does not depend on how the batch is cut.
6.  Action level: the ratio is that of the whole prediction, exp Σ (log p − log q) over its
    tokens, since all of it moved the arm: https://arxiv.org/abs/2505.19789
7.  Token level: a ratio per token, each with the prediction's advantage; the mean over tokens, so
    that long predictions do not weigh more: https://arxiv.org/abs/2509.09674
8.  Tokens of steps that were not executed, because the episode had ended, are ignored.
9.  The clip is 1 − clip_low to 1 + clip_high: https://arxiv.org/abs/2503.14476
10. Dual clip bounds the loss of a bad action that has become likely:
    https://arxiv.org/abs/1912.09729
11. Values learn by Huber loss, by PPO's clipped square (as in 4, detail 9), or by the plain square.
12. The entropy bonus is the mean over tokens, so that its weight does not depend on their number.
13. KL to the policy that acted: mean of Σ (r − 1 − log r) over tokens, r = p / q. It is never
    negative and scatters little: http://joschu.net/blog/kl-approx.html
14. KL to the starting policy is the same with r = p_start / p, and has a gradient:
    https://arxiv.org/abs/2402.03300
15. A loss is a sum of samples times weights that are 1 / (samples of the minibatch): parts add up
    to the whole, exactly, however they are cut.
16. Logarithms of ratios are cut at ±20 before exp: an overflow would end the run.

Legend: T steps of a rollout, N environments, B samples, D tokens of a prediction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from crane_x7_vla_rl.training.errors import PpoError
from crane_x7_vla_rl.training.rl.ppo_config import PpoConfig, ValueConfig

LARGEST_LOG_RATIO: Final = 20.0
TINY: Final = 1e-8
"""Added to a standard deviation before dividing by it."""


class PolicyOutput(NamedTuple):
    """What policy and value head say now of actions that were taken; carries gradients."""

    log_probs: Tensor
    """(B, D)."""
    entropy: Tensor
    """(B, D), nats."""
    values: Tensor | None
    """(B,); None without a value head."""


@dataclass(frozen=True, eq=False)
class OldSamples:
    """What is known of these actions since they were taken; no gradients."""

    log_probs: Tensor
    """(B, D), at the time."""
    advantages: Tensor
    """(B,)."""
    values: Tensor
    """(B,), at the time."""
    returns: Tensor
    """(B,)."""
    weights: Tensor
    """(B,), what each sample counts; 0 for none."""
    action_mask: Tensor | None = None
    """(B, D) bool, tokens of executed steps; None for all."""
    ref_log_probs: Tensor | None = None
    """(B, D), of the starting policy; None without that penalty."""


@dataclass(frozen=True, eq=False)
class Losses:
    """Weighted sums over samples; scalars. `total` alone carries gradients."""

    total: Tensor
    policy: Tensor
    value: Tensor
    entropy: Tensor
    """Nats per token."""
    ref_kl: Tensor
    """KL to the starting policy, nats per prediction."""
    approx_kl: Tensor
    """KL to the policy that acted, nats per prediction."""
    clip_fraction: Tensor
    """Share of ratios outside the clip."""


def gae(
    rewards: Tensor, values: Tensor, next_values: Tensor, terminated: Tensor, ended: Tensor,
    valid: Tensor, gamma: float, lam: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return advantages and returns, each (T, N); 0 where not `valid`.

    All are (T, N). `next_values` are the values of the observations after each step, of the final
    one where an episode was truncated (see `next_values`); `ended` is terminated or truncated;
    `valid` is False for discarded steps. Raises PpoError for other shapes, and for an episode that
    terminated without having ended.
    """
    given = (rewards, values, next_values, terminated, ended, valid)
    if any(tensor.shape != values.shape or tensor.ndim != 2 for tensor in given):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in given)
        raise PpoError(f"gae: shapes are {shapes}, expected (T, N) six times")
    if bool((terminated & ~ended).any()):
        raise PpoError("gae: a step terminated but did not end; ended is terminated or truncated")
    ahead = torch.where(terminated, 0.0, next_values)  # (T, N)
    deltas = torch.where(valid, rewards + gamma * ahead - values, 0.0)  # (T, N)
    advantages = torch.zeros_like(values)
    running = torch.zeros_like(values[0])  # (N,)
    for step in reversed(range(len(values))):
        running = deltas[step] + gamma * lam * torch.where(ended[step], 0.0, running)
        running = torch.where(valid[step], running, 0.0)
        advantages[step] = running
    return advantages, torch.where(valid, advantages + values, 0.0)


def next_values(
    values: Tensor, last_values: Tensor, truncated: Tensor, final_values: Tensor
) -> Tensor:
    """Return (T, N): the value of the observation after each step.

    `values` (T, N) of the observations before each step, `last_values` (N,) of those after the last
    one; `final_values` (T, N) of final observations, read where `truncated` (T, N) alone.
    """
    return torch.where(truncated, final_values, torch.cat([values[1:], last_values[None]]))


def moments(x: Tensor, valid: Tensor) -> Tensor:
    """Return (3,) float64: count, sum and sum of squares of `x` where `valid`; same shapes.

    Those of several processes may be added up.
    """
    known = x[valid].double()
    return torch.stack([known.new_tensor(float(len(known))), known.sum(), known.square().sum()])


def mean_and_std(total: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation for the sum of `moments`; 0, 0 of nothing."""
    count, first, second = total.tolist()
    mean = first / max(count, 1)
    return mean, max(second / max(count, 1) - mean * mean, 0.0) ** 0.5


def normalise(advantages: Tensor, valid: Tensor, total: Tensor) -> Tensor:
    """Return advantages with mean 0 and variance 1 by `total` (see `moments`); 0 where invalid."""
    mean, std = mean_and_std(total)
    return torch.where(valid, (advantages - mean) / (std + TINY), 0.0)


def ppo_loss(new: PolicyOutput, old: OldSamples, config: PpoConfig) -> Losses:
    """Return the loss of actions that were taken; add up those of a minibatch's parts."""
    action_mask = torch.ones_like(old.log_probs, dtype=torch.bool)
    if old.action_mask is not None:
        action_mask = old.action_mask
    tokens = action_mask.sum(-1).clamp(min=1)  # (B,)
    log_ratio = torch.where(action_mask, new.log_probs - old.log_probs, 0.0)  # (B, D)
    policy, clipped = _policy_loss(log_ratio, old.advantages, action_mask, config)
    entropy = torch.where(action_mask, new.entropy, 0.0).sum(-1) / tokens  # (B,)
    value, ref_kl = torch.zeros_like(policy), torch.zeros_like(policy)
    if new.values is not None:
        value = value_loss(new.values, old.values, old.returns, config.value)
    if old.ref_log_probs is not None:
        gap = torch.where(action_mask, old.ref_log_probs - new.log_probs, 0.0)
        ref_kl = _divergence(gap).sum(-1)  # (B,)
    each = {
        "policy": policy,
        "value": value,
        "entropy": entropy,
        "ref_kl": ref_kl,
        "approx_kl": _divergence(log_ratio.detach()).sum(-1),
        "clip_fraction": clipped,
    }
    sums = {name: _weigh(figures, old.weights) for name, figures in each.items()}
    total = (
        config.policy_coefficient * sums["policy"]
        + config.value.coefficient * sums["value"]
        - config.entropy_coefficient * sums["entropy"]
        + config.kl_coefficient * sums["ref_kl"]
    )
    return Losses(total=total, **{name: figure.detach() for name, figure in sums.items()})


def _policy_loss(
    log_ratio: Tensor, advantages: Tensor, action_mask: Tensor, config: PpoConfig
) -> tuple[Tensor, Tensor]:
    """Return loss and share of clipped ratios, each (B,), for log ratios (B, D)."""
    if config.level == "action":
        log_ratio, action_mask = log_ratio.sum(-1, keepdim=True), action_mask.any(-1, keepdim=True)
    ratio = _bounded_exp(log_ratio)  # (B, D), or (B, 1) at action level
    gain = advantages.unsqueeze(-1)  # (B, 1)
    low, high = 1 - config.clip_low, 1 + config.clip_high
    objective = torch.minimum(ratio * gain, ratio.clamp(low, high) * gain)
    if config.dual_clip is not None:
        bounded = torch.maximum(objective, config.dual_clip * gain)
        objective = torch.where(gain < 0, bounded, objective)
    outside = (ratio.detach() < low) | (ratio.detach() > high)
    parts = action_mask.sum(-1).clamp(min=1)  # (B,)
    loss = -torch.where(action_mask, objective, 0.0).sum(-1) / parts
    return loss, (outside & action_mask).sum(-1) / parts


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, config: ValueConfig) -> Tensor:
    """Return (B,), half the squared error or what `config.loss` says instead; all (B,)."""
    if config.loss == "huber":
        return functional.huber_loss(values, returns, reduction="none", delta=config.huber_delta)
    error = (values - returns).square()  # (B,)
    if config.loss == "clipped":
        near = old_values + (values - old_values).clamp(-config.clip, config.clip)
        error = torch.maximum(error, (near - returns).square())
    return 0.5 * error


def check_gradient(norm: float, largest_advantage: float, where: str) -> None:
    """Raise PpoError if advantages are not all 0, but the policy's gradient is.

    `norm` is the length of the gradient of the policy loss without a clip; 0 then says that
    log-probabilities do not depend on the weights.
    """
    if norm == 0 and largest_advantage > 0:
        raise PpoError(
            f"{where}: the policy gradient is exactly 0 although advantages reach"
            f" {largest_advantage:.3g}; expected a number above 0. Log-probabilities do not depend"
            " on the trained weights: are they computed with gradients, are adapters trained, and"
            " is the policy not certain of every token (temperature)?"
        )


def _bounded_exp(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()


def _divergence(log_ratio: Tensor) -> Tensor:
    """Return r − 1 − log r, never negative."""
    bounded = log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return torch.expm1(bounded) - bounded


def _weigh(figures: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of figures (B,) by weights (B,), whatever stands where the weight is 0."""
    return (torch.where(weights > 0, figures, 0.0) * weights).sum()
