"""GRPO's advantages: an episode is as good as it is better than others that began alike.

Rewards of whole episodes → advantages, and which steps to learn from. All else is `ppo_loss`
without a value head (https://arxiv.org/abs/2402.03300). Numbers continue those of `update`.

26. An episode's return is the plain sum of its rewards; every step of it has the same advantage,
    (return − mean of the group) / standard deviation of the group; without
    ppo.normalise_advantages it is not divided: https://arxiv.org/abs/2503.20783
27. A group whose episodes all ended alike has no learning signal and is skipped, so that
    minibatches are not diluted: https://arxiv.org/abs/2503.14476 (dynamic sampling)
28. Episodes that did not end within the rollout, and discarded ones, are skipped: their return is
    not known. So are those that began too late for the longest to end: of them, only the quick
    successes would be known. So rollouts must begin with a reset of all environments, and last as
    long as the longest episode.

Legend: T steps of a rollout, N environments, K episodes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crane_x7_vla_rl.training.errors import PpoError
from crane_x7_vla_rl.training.rl.ppo import TINY


def group_advantages(
    rewards: Tensor,
    ended: Tensor,
    valid: Tensor,
    groups: Tensor,
    longest: int = 1,
    normalise: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return advantages (T, N), and which steps to learn from, (T, N) bool.

    `longest`: steps of the longest episode.

    `rewards`, `ended` (terminated or truncated) and `valid` as for `gae`; `groups` (T, N) int64
    names the task and first scene that the episode at each step shares with others. Raises PpoError
    for other shapes.
    """
    given = (rewards, ended, valid, groups)
    if any(tensor.shape != rewards.shape or tensor.ndim != 2 for tensor in given):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in given)
        raise PpoError(f"grpo: shapes are {shapes}, expected (T, N) four times")
    episodes = _number_episodes(ended)  # (T, N)
    count = int(episodes.max()) + 1
    returns = _per_episode(torch.where(valid, rewards, 0.0).double(), episodes, count)  # (K,)
    whole = _per_episode(ended.double(), episodes, count) > 0
    whole &= _per_episode((~valid).double(), episodes, count) == 0
    began = torch.full_like(whole, len(rewards), dtype=torch.int64)  # (K,)
    times = torch.arange(len(rewards), device=groups.device)[:, None].expand_as(episodes)
    began.scatter_reduce_(0, episodes.flatten(), times.flatten(), "amin")
    whole &= began <= max(len(rewards) - longest, 0)
    of = torch.zeros(count, dtype=torch.int64, device=groups.device)  # (K,)
    of[episodes.flatten()] = groups.flatten()
    advantages, taught = torch.zeros_like(returns), torch.zeros_like(whole)
    for group in sorted(set(of[whole].tolist())):
        members = whole & (of == group)  # (K,)
        spread = returns[members].std(correction=0)
        if spread > 0:
            advantages[members] = returns[members] - returns[members].mean()
            if normalise:
                advantages[members] /= spread + TINY
            taught |= members
    return advantages.to(rewards.dtype)[episodes], taught[episodes]


def _number_episodes(ended: Tensor) -> Tensor:
    """Return (T, N) int64: a different number for each episode."""
    before = torch.cat([torch.zeros_like(ended[:1]), ended[:-1]]).long().cumsum(0)  # (T, N)
    columns = torch.arange(ended.shape[1], device=ended.device)  # (N,)
    return before * ended.shape[1] + columns


def _per_episode(x: Tensor, episodes: Tensor, count: int) -> Tensor:
    """Return (K,): the sums of `x` (T, N) over the steps of each episode."""
    return x.new_zeros(count).index_add_(0, episodes.flatten(), x.flatten())
