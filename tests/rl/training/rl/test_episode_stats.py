"""The running success is that of all episodes, not of those that end early."""

from __future__ import annotations

import numpy as np
import pytest

from crane_x7_vla_rl.sim.vector.protocol import EpisodeResult
from crane_x7_vla_rl.training.rl.episode_stats import ENOUGH, Outcomes, Recent

LONGEST, CHUNK, ENVIRONMENTS, STEPS = 20, 2, 16, 6


class World:
    """Environments in which some episodes succeed early, and the others run into the limit."""

    def __init__(self, seed: int, share: float) -> None:
        self.draw, self.share = np.random.default_rng(seed), share
        self.now, self.ends = 0, [self.next() for _ in range(ENVIRONMENTS)]
        self.began = [0] * ENVIRONMENTS
        self.told: list[tuple[int, bool]] = []
        """When each episode began that has ended, and whether it succeeded."""

    def next(self) -> tuple[int, bool]:
        """Return how many decisions the next episode takes, and whether it succeeds."""
        if self.draw.random() < self.share:
            return int(self.draw.integers(2, 8)), True
        return LONGEST, False

    def roll_out(self) -> tuple[list[EpisodeResult], list[int]]:
        episodes, ended = [], []
        for step in range(STEPS):
            for env in range(ENVIRONMENTS):
                length, success = self.ends[env]
                if self.now + step + 1 < self.began[env] + length:
                    continue
                steps = CHUNK * length - int(self.draw.integers(CHUNK))  # of a chunk, maybe one
                episodes.append(EpisodeResult(env, 0, success, float(success), steps))
                ended.append(step)
                self.told.append((self.began[env], success))
                self.began[env], self.ends[env] = self.now + step + 1, self.next()
        self.now += STEPS
        return episodes, ended


def test_an_episode_counts_when_its_time_limit_has_passed() -> None:
    world, outcomes = World(seed=0, share=0.5), Outcomes(LONGEST, CHUNK)
    counted = successes = 0
    for _ in range(40):
        more, well = outcomes.add(*world.roll_out(), STEPS)
        counted, successes = counted + more, successes + well
        due = [success for began, success in world.told if began + LONGEST <= world.now]
        assert (counted, successes) == (len(due), sum(due))


def test_short_runs_after_a_restart_do_not_flatter() -> None:
    """As with a checkpoint every 24 decisions: whoever counts what has ended sees too much."""
    share, counted, hasty = 0.4, np.zeros(2), np.zeros(2)
    for seed in range(60):
        world, outcomes = World(seed, share), Outcomes(LONGEST, CHUNK)
        for _ in range(4):
            episodes, ended = world.roll_out()
            counted += outcomes.add(episodes, ended, STEPS)
            hasty += len(episodes), sum(episode.success for episode in episodes)
    assert counted[0] > 900
    assert counted[1] / counted[0] == pytest.approx(share, abs=0.05)
    assert hasty[1] / hasty[0] > share + 0.1


def test_nobody_waits_for_episodes_that_a_restart_cut_off() -> None:
    outcomes = Outcomes(LONGEST, CHUNK)
    outcomes.add([EpisodeResult(0, 0, True, 1.0, 4)], [3], STEPS)
    outcomes.restart()
    assert [outcomes.add([], [], STEPS) for _ in range(10)] == [(0, 0)] * 10


def test_the_share_is_of_the_newest_episodes_and_survives_a_resume() -> None:
    recent = Recent()
    assert recent.add(0, 0) is None
    assert recent.add(ENOUGH, 0) == 0
    assert recent.add(ENOUGH // 2, ENOUGH // 2) == pytest.approx(1 / 3)
    resumed = Recent(recent.state())
    for one in (recent, resumed):
        assert one.add(ENOUGH // 2, ENOUGH // 2) == 1
