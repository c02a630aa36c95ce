"""Small environments for tests, and targets that are known to succeed."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from crane_x7_vla_rl.scenes import WorldConfig
from crane_x7_vla_rl.sim.expert import Expert
from crane_x7_vla_rl.sim.vector.cpu import CpuVectorEnv
from crane_x7_vla_rl.sim.vector.make import make
from crane_x7_vla_rl.sim.vector.protocol import Steps, VectorEnv
from crane_x7_vla_rl.sim.world import World
from crane_x7_vla_rl.vector_config import VectorConfig, episode_seed

WORLD = WorldConfig(control_hz=5, image_size=(32, 32))
"""Episodes of 50 steps."""
FOUR = VectorConfig(world=WORLD, num_envs=4, processes=2)
"""Groups of environments 0, 1 and 2, 3; process 0 holds 0 and 2."""
ALONE = VectorConfig(world=WORLD, num_envs=1, processes=1, groups=1)


@cache
def four() -> CpuVectorEnv:
    """Return the environments of FOUR, for all who leave them as they were: processes take long."""
    env = make(FOUR)
    assert isinstance(env, CpuVectorEnv)
    return env


@cache
def expert_world() -> World:
    """Return a world that stays: while there is one, SAPIEN keeps its renderer for others."""
    return World(WORLD)


@cache
def expert_targets(base: int, env: int, episode: int) -> np.ndarray[Any, Any]:
    """Return (T, 8) joint targets that solve the episode in its last step."""
    world = expert_world()
    world.reset(episode_seed(base, env, episode))
    expert, targets = Expert(world), []
    while not world.ended:
        targets.append(expert.act())
        world.step(targets[-1])
    assert world.success, "the expert is expected to succeed; choose another seed"
    return np.array(targets, dtype=np.float32)


def still(env: VectorEnv, group: int, steps: int) -> np.ndarray[Any, Any]:
    """Return (n, steps, 8) that hold every arm where it is."""
    state = np.asarray(env.look(group).state_rad)
    return np.repeat(state[:, None], steps, axis=1)


def waving(envs: range, steps: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Return (n, steps, 8) that move every arm, each in its own way, whoever is in its group."""
    rows = []
    for env in envs:
        moves = np.random.default_rng([seed, env]).normal(0, 0.1, (steps, 8))
        rows.append(np.array([0, 0.4, 0, -2, 0, -0.8, 1.6, 0.3]) + moves.cumsum(0))
    return np.array(rows, dtype=np.float32)


def run(env: VectorEnv, group: int, targets: np.ndarray[Any, Any]) -> Steps:
    """Send and receive."""
    env.send(group, targets)
    return env.receive(group)
