"""Environments of bench_rl's plain loop: one process each, steps and images through pipes.

`Order` → `Seen` with the complete image, both pickled. The process runs the gymnasium task: every
step renders, with ManiSkill's own observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from crane_x7_vla_rl.robot import DOF
from crane_x7_vla_rl.scenes import WorldConfig
from crane_x7_vla_rl.sim.workers import Workers
from crane_x7_vla_rl.vector_config import episode_seed


@dataclass(frozen=True, eq=False)
class Order:
    """A request to an environment."""

    target_rad: Any
    """Targets (8,) of the step; None begins the episode."""
    seed: int
    """Seed of the episode to begin: now, or when this one ends."""


@dataclass(frozen=True, eq=False)
class View:
    """The policy's observation."""

    picture: Any
    """(H, W, 3) uint8."""
    joints_rad: Any
    """(8,)."""
    instruction: str


@dataclass(frozen=True, eq=False)
class Seen:
    """The result of an order."""

    view: View
    reward: float
    terminated: bool
    truncated: bool
    final: View | None
    """The last observation of a truncated episode."""


class Room:
    """One environment, in its process."""

    def __init__(self, world: WorldConfig) -> None:
        import torch

        torch.set_num_threads(1)
        self._env = make_task(world, "pd_joint_pos", "sparse")

    def __call__(self, order: Order) -> Seen:
        """Execute the order."""
        if order.target_rad is None:
            return Seen(self._begin(order.seed), 0.0, False, False, None)
        observation, reward, terminated, truncated, _ = self._env.step(order.target_rad)
        view, ended = self._view(observation), bool(terminated) or bool(truncated)
        final = view if bool(truncated) and not bool(terminated) else None
        if ended:
            view = self._begin(order.seed)
        return Seen(view, float(reward), bool(terminated), final is not None, final)

    def _begin(self, seed: int) -> View:
        observation, _ = self._env.reset(seed=seed)
        return self._view(observation)

    def _view(self, observation: Any) -> View:
        picture = observation["sensor_data"]["base_camera"]["rgb"][0].numpy()
        joints = observation["agent"]["qpos"][0, :DOF].numpy().astype(np.float64)
        return View(picture, joints, self._env.unwrapped.instruction[0])  # type: ignore[attr-defined]


def make_task(world: WorldConfig, control_mode: str, reward_mode: str) -> Any:
    """Return the gymnasium task, with images in its observations."""
    from crane_x7_vla_rl import sim

    return sim.make(
        world.task,
        control_mode=control_mode,
        reward_mode=reward_mode,
        max_episode_steps=world.max_steps,
        image_size=world.image_size,
        colours=world.colours,
        spawn_range_m=world.spawn_range_m,
        home_noise_rad=world.home_noise_rad,
        control_freq=world.control_hz,
    )


class Processes:
    """All environments, stepped together."""

    def __init__(self, world: WorldConfig, count: int, base_seed: int) -> None:
        """Start the processes; raises SimError."""
        self._workers = Workers(count, partial(Room, world))
        self._base, self._episodes = base_seed, [0] * count

    def begin(self) -> list[View]:
        """Begin episode 0 everywhere."""
        for env in range(len(self._workers)):
            self._workers.send(env, Order(None, self._seed(env)))
        return [self._receive(env).view for env in range(len(self._workers))]

    def step(self, targets_rad: Sequence[Any]) -> list[Seen]:
        """Step all, and wait for all."""
        for env, target in enumerate(targets_rad):
            self._workers.send(env, Order(target, self._seed(env, 1)))
        return [self._receive(env) for env in range(len(targets_rad))]

    def close(self) -> None:
        """End the processes."""
        self._workers.close()

    def _seed(self, env: int, later: int = 0) -> int:
        return episode_seed(self._base, env, self._episodes[env] + later)

    def _receive(self, env: int) -> Seen:
        seen: Seen = self._workers.receive(env)
        self._episodes[env] += seen.terminated or seen.truncated
        return seen
