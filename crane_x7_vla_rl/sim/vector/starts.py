"""Episodes that begin in the middle of a demonstration: seed, environment and episode → a start.

A demonstration is a scene's seed and the joint targets that solved it. To begin in its middle, the
simulation starts that seed and executes the first targets; nothing is rendered meanwhile. That
restores contacts and drives, too, which a copy of positions and speeds would not. In a new scene
the state is the same bit for bit; in one that has moved before, PhysX's contacts may differ a
little. The arm must then be where it was in the recording: a demonstration whose targets were
executed with noise, or by another version of the simulation, ends the run with an error.

Which episodes begin so, where in the demonstration (a stage of STAGES) and in which one, depends on
seed, environment, episode and weights alone.

Legend: T steps of a demonstration, k of them executed before an episode begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.vector_config import episode_seed

Array = npt.NDArray[np.float32]

STAGES: Final = 10
"""Parts of equal length that demonstrations are divided into."""
STREAM: Final = 3
"""Stream of a seed's random numbers; scene, camera and noise of demonstrations use others."""
TOLERANCE_RAD: Final = 0.02
"""Largest distance of a joint from the recording. What a scene did before changed it by 0.0016 when
a cube was grasped."""


@dataclass(frozen=True, eq=False)
class Demonstration:
    """What solved one scene."""

    seed: int
    targets_rad: Array
    """(T, 8) as executed."""
    state_rad: Array
    """(T, 8) joints as measured before each of them."""


@dataclass(frozen=True, eq=False)
class MiddleStart:
    """Where one episode begins."""

    seed: int
    stage: int
    """0 to STAGES − 1."""
    targets_rad: Array
    """(k, 8) to execute first."""
    state_rad: Array
    """(k + 1, 8) joints before each of them, and after the last one."""

    def check(self, step: int, joints_rad: npt.NDArray[np.floating]) -> None:
        """Raise SimError unless the joints (8,) after `step` targets are those of the recording."""
        off = float(np.abs(joints_rad - self.state_rad[step]).max())
        if not off <= TOLERANCE_RAD:
            raise SimError(
                f"env.start_from: the demonstration of seed {self.seed} does not repeat itself:"
                f" after {step} steps a joint is {off:.4f} rad from where it was recorded, expected"
                f" at most {TOLERANCE_RAD}. It was recorded with noise, in other scenes or by"
                " another version; record it again"
            )


@dataclass(frozen=True, eq=False)
class Starts:
    """The demonstrations of a run, and how often each stage is chosen."""

    demonstrations: Sequence[Demonstration]
    share: float
    """Probability that an episode begins in the middle of one."""
    weights: tuple[float, ...] = (1.0,) * STAGES
    """Of each stage, above 0."""

    def weighted(self, weights: Sequence[float]) -> Starts:
        """Return the same with other weights."""
        return replace(self, weights=tuple(weights))

    def of(self, base: int, env: int, episode: int) -> MiddleStart | None:
        """Return where an environment's episode begins; None for the task's own start."""
        generator = np.random.default_rng([episode_seed(base, env, episode), STREAM])
        if generator.uniform() >= self.share:
            return None
        chances = np.array(self.weights) / sum(self.weights)
        stage = int(generator.choice(STAGES, p=chances))
        found = self.demonstrations[int(generator.integers(len(self.demonstrations)))]
        last = len(found.targets_rad) - 1
        count = min(int(len(found.targets_rad) * (stage + generator.uniform()) / STAGES), last)
        states = found.state_rad[: count + 1]
        return MiddleStart(found.seed, stage, found.targets_rad[:count], states)
