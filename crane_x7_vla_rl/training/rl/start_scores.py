"""Where episodes should begin: how those that began in each stage ended → weights of the stages.

Episodes that always succeed, or never, teach nothing about what to do; those that succeed half of
the time teach most, as their outcomes vary by p (1 − p). So a stage's weight is that, of its recent
success p, plus a little, so that none is forgotten. Goals of intermediate difficulty:
https://arxiv.org/abs/1705.06366, starts from demonstrations: https://arxiv.org/abs/1709.10089.

Legend: S stages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import torch
from torch import Tensor

from crane_x7_vla_rl.sim.vector.protocol import EpisodeResult
from crane_x7_vla_rl.sim.vector.starts import STAGES

KEPT: Final = 0.8
"""What an episode counts after one more update, relative to before."""
LEAST: Final = 0.02
"""Weight of a stage whose outcome is certain; 0.25 is that of success half of the time."""


class StartScores:
    """How recent episodes ended that began in the middle of demonstrations."""

    def __init__(self, counts: Sequence[Sequence[float]] = ()) -> None:
        """`counts` is what `state` returned."""
        episodes, successes = counts or ((0.0,) * STAGES, (0.0,) * STAGES)
        self._episodes, self._successes = list(episodes), list(successes)

    def add(self, episodes: Sequence[float], successes: Sequence[float]) -> None:
        """Take those of an update, of all processes, by stage."""
        self._episodes = [KEPT * a + b for a, b in zip(self._episodes, episodes, strict=True)]
        self._successes = [KEPT * a + b for a, b in zip(self._successes, successes, strict=True)]

    def weights(self) -> list[float]:
        """Return S numbers above 0; without an episode, a stage counts as one of even odds."""
        shares = [
            (won + 1) / (count + 2)
            for won, count in zip(self._successes, self._episodes, strict=True)
        ]
        return [share * (1 - share) + LEAST for share in shares]

    def state(self) -> list[list[float]]:
        """Return what a resumed run begins with."""
        return [list(self._episodes), list(self._successes)]


def by_stage(episodes: Iterable[EpisodeResult]) -> Tensor:
    """Return (2, S) float64: episodes that began in each stage, and successes among them."""
    counts = torch.zeros(2, STAGES, dtype=torch.float64)
    for episode in episodes:
        if episode.stage is not None:
            counts[0, episode.stage] += 1
            counts[1, episode.stage] += episode.success
    return counts
