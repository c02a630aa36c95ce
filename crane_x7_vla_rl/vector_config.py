"""Configuration of parallel environments: options → a checked `VectorConfig`, and seeds.

It imports nothing heavy, so that a trainer can answer `--help` at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Literal, get_args

import numpy as np

from crane_x7_vla_rl import fields
from crane_x7_vla_rl.fields import Count, FinitePositive, Index
from crane_x7_vla_rl.scenes import EPISODE_S, EVALUATION_SEED, Variation, WorldConfig
from crane_x7_vla_rl.suggest import did_you_mean

Backend = Literal["cpu", "gpu"]
Simulator = Literal["maniskill", "genesis", "isaacsim"]
RewardKind = Literal["binary", "sparse", "dense"]
LONGEST_CHUNK: Final = 64
"""Most steps in one `send`."""


class VectorConfigError(ValueError):
    """An option of the environments is invalid; the message names it and the known values."""


@dataclass(frozen=True)
class Rewards:
    """Reward of a step; one episode gets at most 1 with each kind."""

    kind: RewardKind = "binary"
    """`binary`: 1 in the step of success, which ends the episode as terminated; at its time limit
    it is truncated, and the value of its final observation is added.
    `sparse`: the episode runs its whole time and gets 1 at the end if it is then successful. The
    end is part of the task, so it is terminated: no value is added.
    `dense`: the difference of progress, 0…1, between steps: nearness of the fingertips to the
    cube, grasped, then height (Lift) or nearness to the plate (PickPlace), and success, weighted
    as in sim.tasks. It ends as with `binary`, and progress that is lost again cancels out."""

    def __post_init__(self) -> None:
        check_choice("rewards.kind", self.kind, get_args(RewardKind))

    @property
    def ends_at_success(self) -> bool:
        """Whether success ends the episode."""
        return self.kind != "sparse"


@dataclass(frozen=True)
class VectorConfig:
    """Environments that are stepped together."""

    world: WorldConfig = field(default_factory=WorldConfig)
    num_envs: Count = 8
    backend: Backend = "cpu"
    """`cpu`: scenes in processes; `gpu`: all scenes in one simulation on the GPU."""
    simulator: Simulator = "maniskill"
    processes: Index = 0
    """Processes for the scenes of the CPU backend; 0 for one per core."""
    first_seed: Index = 0
    """The base seed, unless `reset` sets another."""
    first_env: Index = 0
    """Index of the first environment among those of all ranks: two ranks with n environments run
    the episodes of one rank with 2n."""
    same_scene: Count = 1
    """Environments in a row whose episodes of the same number have the same scene."""
    rewards: Rewards = field(default_factory=Rewards)
    groups: Count = 2
    """Environments are stepped in this many groups, one while the policy runs on another; the GPU
    backend steps all of them together, in a single group."""
    deadline_s: FinitePositive = 60.0
    """Timeout of an order to a process, after which it counts as hung."""
    delay: Index = 0
    """Control steps from an image to the first one that uses its answer; see sim.vector.late."""
    least_delay: Index | None = None
    """Each episode draws its delay between this and `delay`; None: `delay` for all."""
    true_state: bool = False
    """Whether views hold the simulator's true state, for a critic; see sim.vector.true_state."""

    def __post_init__(self) -> None:
        check_choice("env id", self.world.task, tuple(EPISODE_S))
        check_choice("backend", self.backend, get_args(Backend))
        check_choice("simulator", self.simulator, get_args(Simulator))
        fields.check(self, error=VectorConfigError)
        if self.least_delay is not None and self.least_delay > self.delay:
            raise VectorConfigError(
                f"least_delay is {self.least_delay} steps, expected at most delay, {self.delay}"
            )
        varied = self.world.vary or self.world.variation != Variation()
        if varied and (self.backend, self.simulator) != ("cpu", "maniskill"):
            raise VectorConfigError(
                f"world.vary or world.variation is set, but {self.simulator} on the {self.backend}"
                " backend cannot vary scene and arm; set backend to cpu and simulator to maniskill"
            )
        if self.backend == "gpu" and self.world.render == "cpu":
            raise VectorConfigError(
                "render is cpu, but backend is gpu, which draws on the GPU that simulates; set"
                " render to auto, or backend to cpu"
            )
        if self.num_envs % self.same_scene:
            raise VectorConfigError(
                f"same_scene is {self.same_scene}, expected a divisor of the {self.num_envs}"
                " environments, so that each scene has as many"
            )

    def seed_of(self, base: int, env: int, episode: int) -> int:
        """Return the scene's seed of an episode of one of these environments."""
        return episode_seed(base, (self.first_env + env) // self.same_scene, episode)


def check_choice(what: str, given: str, known: Sequence[str]) -> None:
    """Raise VectorConfigError, with the nearest names, unless `given` is known."""
    if given in known:
        return
    meant = did_you_mean(given, known, cutoff=0.5, most=3) or "."
    raise VectorConfigError(f"{what} {given!r} is unknown{meant} Known: {', '.join(known)}")


def episode_seed(base: int, env: int, episode: int) -> int:
    """Return the scene's seed of one environment's episode, 0 ≤ seed < EVALUATION_SEED.

    It depends only on these three numbers, neither on processes nor on other environments. Two
    episodes may have the same seed, as any two of a million random scenes may.
    """
    drawn = np.random.SeedSequence([base, env, episode]).generate_state(1, np.uint64)[0]
    return int(drawn % EVALUATION_SEED)


def spread(num_envs: int, parts: int) -> tuple[range, ...]:
    """Return `parts` ranges, or `num_envs` if that is less, of nearly equal length."""
    edges = np.linspace(0, num_envs, min(parts, num_envs) + 1).round().astype(int).tolist()
    return tuple(range(start, stop) for start, stop in pairwise(edges))
