"""One process of the CPU backend: orders for its environments → results; it holds their scenes.

Orders and results go over the pipe; targets, images and joints through shared memory. An image is
rendered directly into it, once, and only if a policy will use it: after a chunk, or at the end of a
truncated episode.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crane_x7_vla_rl.robot import DOF
from crane_x7_vla_rl.sim.vector.protocol import EpisodeResult, not_finite
from crane_x7_vla_rl.sim.vector.shared_memory import SharedArrays, SharedPlan
from crane_x7_vla_rl.sim.world import World
from crane_x7_vla_rl.vector_config import VectorConfig


@dataclass(frozen=True)
class EnvOrder:
    """An order for one environment."""

    env: int
    seed: int
    """Seed of the episode to start: now, or when this one ends."""
    steps: int
    """Number of the shared targets to execute; 0 starts the episode."""


@dataclass(frozen=True)
class GroupOrder:
    """Orders for environments of one group."""

    group: int
    orders: tuple[EnvOrder, ...]


@dataclass(frozen=True)
class EnvOutcome:
    """The result of one order."""

    env: int
    instruction: str
    """Instruction of the episode that is running now."""
    reward: float = 0.0
    steps: int = 0
    truncated: bool = False
    ended: EpisodeResult | None = None
    """The episode that has ended, terminated unless `truncated`."""


@dataclass(frozen=True)
class GroupOutcome:
    """The results of an order."""

    group: int
    outcomes: tuple[EnvOutcome, ...]


class EnvWorker:
    """The handler of a process: slots by environment, each created at its first use."""

    def __init__(self, config: VectorConfig, plan: SharedPlan) -> None:
        self.shared = plan.map()
        self.slots: dict[int, EnvSlot] = {}
        self._config = config

    def __call__(self, order: GroupOrder) -> GroupOutcome:
        """Execute; raises SimError if a scene has become unstable."""
        return GroupOutcome(order.group, tuple(self._carry_out(each) for each in order.orders))

    def _carry_out(self, order: EnvOrder) -> EnvOutcome:
        if order.env not in self.slots:
            self.slots[order.env] = EnvSlot(self._config, self.shared, order.env)
        slot = self.slots[order.env]
        if not order.steps:
            slot.begin(order.seed)
            slot.show()
            return EnvOutcome(order.env, slot.world.instruction)
        targets = self.shared.targets_rad[order.env, : order.steps].astype(np.float64)
        before = slot.world.step_index
        reward = slot.run(targets)
        steps = slot.world.step_index - before
        ended, truncated = slot.ended_episode(), slot.truncated
        if ended is not None:
            if truncated:
                slot.show(final=True)
            slot.begin(order.seed)
        slot.show()
        return EnvOutcome(order.env, slot.world.instruction, reward, steps, truncated, ended)


class EnvSlot:
    """One environment: a world, its episode and the episode's reward so far."""

    def __init__(self, config: VectorConfig, shared: SharedArrays, env: int) -> None:
        self.world = World(config.world)
        self._rewards, self._shared, self._env = config.rewards, shared, env
        self._seed, self._total, self._progress = 0, 0.0, 0.0

    def begin(self, seed: int) -> None:
        """Start the episode of a seed."""
        self.world.reset(seed)
        self._seed, self._total = seed, 0.0
        self._progress = self.world.progress() if self._rewards.kind == "dense" else 0.0

    def run(self, targets: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> float:
        """Execute targets (T, 8) until the episode ends; return the sum of the rewards."""
        reward = 0.0
        for target in targets:
            self.world.step(target)
            reward += self._reward()
            if not np.isfinite(reward):
                raise not_finite("reward", self._env, self._seed, self.world.step_index, reward)
            if self._ended:
                break
        self._total += reward
        return reward

    def _reward(self) -> float:
        """Return the reward of the last step, see vector_config.Rewards."""
        if self._rewards.kind == "dense":
            before, self._progress = self._progress, self.world.progress()
            return self._progress - before
        return float(self.world.success and self._ended)

    @property
    def _out_of_time(self) -> bool:
        return self.world.step_index >= self.world.config.max_steps

    @property
    def _ended(self) -> bool:
        return self._out_of_time or (self._rewards.ends_at_success and self.world.success)

    @property
    def truncated(self) -> bool:
        """Whether the episode has ended only by its time limit."""
        return self._out_of_time and self._rewards.ends_at_success and not self.world.success

    def ended_episode(self) -> EpisodeResult | None:
        """Return the episode if it has ended."""
        if not self._ended:
            return None
        world = self.world
        return EpisodeResult(self._env, self._seed, world.success, self._total, world.step_index)

    def show(self, final: bool = False) -> None:
        """Write the observation into shared memory."""
        shared, env = self._shared, self._env
        joints = self.world.position_rad()
        if joints.shape != (DOF,) or not np.isfinite(joints).all():
            step = self.world.step_index
            raise not_finite("observation state_rad", env, self._seed, step, joints.tolist())
        (shared.final_state_rad if final else shared.state_rad)[env] = joints
        self.world.draw((shared.final_images if final else shared.images)[env])
