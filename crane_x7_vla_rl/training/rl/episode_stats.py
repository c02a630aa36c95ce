"""How episodes end while a policy learns: an unbiased success rate.

Episodes that ended in rollouts → how many of them count now, and how many succeeded. Episodes that
end soon after all environments restarted are mostly short ones, and those are the successes: a
failure runs into its time limit. So an episode counts only after its time limit, however early it
ended: whether it counts depends on its start alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from crane_x7_vla_rl.sim.vector.protocol import EpisodeResult
from crane_x7_vla_rl.training.rl.agent import Agent
from crane_x7_vla_rl.training.rl.rollout import Collected

ENOUGH: Final = 100
"""Number of episodes of the running share, as soon as that many have ended."""


class Outcomes:
    """The episodes of one process that do not count yet; time is in decisions."""

    def __init__(self, longest: int, executed: int) -> None:
        """`longest`: decisions until the time limit; `executed`: control steps of a decision."""
        self._longest, self._executed = longest, executed
        self._now = 0
        """Since all environments restarted."""
        self._waiting: list[tuple[int, bool]] = []
        """When each episode began, and whether it succeeded."""

    def restart(self) -> None:
        """All environments restarted: how the running episodes would have ended stays unknown."""
        self._now, self._waiting = 0, []

    def add(
        self, episodes: Sequence[EpisodeResult], ended: Sequence[int], steps: int
    ) -> tuple[int, int]:
        """Return how many episodes count since the last call, and how many of them succeeded.

        `episodes` ended in the decisions `ended`, from 0, of a rollout of `steps` decisions.
        """
        for episode, last in zip(episodes, ended, strict=True):
            lasted = -(-episode.steps // self._executed)
            self._waiting.append((self._now + last + 1 - lasted, episode.success))
        self._now += steps
        due = [success for began, success in self._waiting if self._is_due(began)]
        self._waiting = [one for one in self._waiting if not self._is_due(one[0])]
        return len(due), sum(due)

    def _is_due(self, began: int) -> bool:
        return began + self._longest <= self._now


class Recent:
    """The share of successes among the newest episodes of all processes."""

    def __init__(self, updates: Sequence[Sequence[int]] = ()) -> None:
        """`updates` is what `state` returned."""
        self._updates = [(int(episodes), int(successes)) for episodes, successes in updates]

    def add(self, episodes: int, successes: int) -> float | None:
        """Take those of an update; return the share among ENOUGH or a few more, None for none."""
        self._updates.append((episodes, successes))
        while sum(count for count, _ in self._updates[1:]) >= ENOUGH:
            del self._updates[0]
        total = sum(count for count, _ in self._updates)
        return sum(successes for _, successes in self._updates) / total if total else None

    def state(self) -> list[tuple[int, int]]:
        """Return what a resumed run begins with."""
        return list(self._updates)


@dataclass(frozen=True)
class Sums:
    """What all processes found in a rollout together."""

    episodes: int
    """Those that began as the task does; so the next three."""
    successes: int
    rewards: float
    episode_steps: int
    middle_episodes: int
    """Those that began in the middle of a demonstration."""
    middle_successes: int
    env_steps: int
    discarded: int
    counted: int
    """Episodes whose time limit has passed, see `Outcomes`."""
    counted_successes: int

    @classmethod
    def of(cls, agent: Agent, found: Collected, counted: tuple[int, int]) -> Sums:
        """Every process must call it."""
        whole = [one for one in found.episodes if one.stage is None]
        middle = [one for one in found.episodes if one.stage is not None]
        mine = torch.tensor(
            [
                len(whole),
                sum(one.success for one in whole),
                sum(one.total_reward for one in whole),
                sum(one.steps for one in whole),
                len(middle),
                sum(one.success for one in middle),
                found.env_steps,
                found.discarded,
                *counted,
            ],
            dtype=torch.float64,
        )
        total = agent.sum(mine.to(agent.accelerator.device)).tolist()
        return cls(int(total[0]), int(total[1]), total[2], *map(int, total[3:]))

    @property
    def middle_share(self) -> float | None:
        """Successes of those that began in the middle of a demonstration."""
        return self.middle_successes / self.middle_episodes if self.middle_episodes else None

    def mean(self, figure: float) -> float | None:
        """Per episode."""
        return figure / self.episodes if self.episodes else None
