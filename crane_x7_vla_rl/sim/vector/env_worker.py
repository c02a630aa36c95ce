"""One process of the CPU backend: orders for its environments → results; it holds their scenes.

Orders and results go over the pipe; targets, images and joints through shared memory. An image is
rendered directly into it, once, and only if a policy will use it: after a chunk, or at the end of a
truncated episode.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from crane_x7_vla_rl.robot import DOF
from crane_x7_vla_rl.sim.vector.protocol import EpisodeResult, not_finite
from crane_x7_vla_rl.sim.vector.shared_memory import SharedArrays, SharedPlan
from crane_x7_vla_rl.sim.vector.starts import MiddleStart
from crane_x7_vla_rl.sim.vector.true_state import true_state
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
    start: MiddleStart | None = None
    """Where the episode to start begins; None: as the task does."""
    fresh: bool = False
    """Build the scene again: contacts depend a little on what a scene did before its reset."""


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

    def _slot(self, env: int, fresh: bool) -> EnvSlot:
        """Return the slot of an environment, with a new scene where a used one must be fresh."""
        old = self.slots.get(env)
        if old is not None and not (fresh and old.used):
            return old
        self.slots[env] = EnvSlot(self._config, self.shared, env)
        if old is not None:
            old.world.close()
        return self.slots[env]

    def _carry_out(self, order: EnvOrder) -> EnvOutcome:
        slot = self._slot(order.env, order.fresh)
        if not order.steps:
            slot.begin(order.seed, order.start)
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
            slot.begin(order.seed, order.start)
        slot.show()
        return EnvOutcome(order.env, slot.world.instruction, reward, steps, truncated, ended)


class EnvSlot:
    """One environment: a world, its episode and the episode's reward so far."""

    def __init__(self, config: VectorConfig, shared: SharedArrays, env: int) -> None:
        self.world = World(config.world)
        self._tells = config.true_state
        self.used = False
        """Whether the scene has ever moved."""
        self._rewards, self._shared, self._env = config.rewards, shared, env
        self._seed, self._total, self._progress = 0, 0.0, 0.0
        self._stage: int | None = None
        self._began = 0
        """Steps of the demonstration before this episode."""

    def begin(self, seed: int, start: MiddleStart | None = None) -> None:
        """Start the episode of a seed, or of a demonstration; raises SimError."""
        self._seed, self._total, self._stage = seed, 0.0, None
        if start is None:
            self.world.reset(seed)
        else:
            self._repeat(start)
        self._began = self.world.step_index
        self._progress = self.world.progress() if self._rewards.kind == "dense" else 0.0

    def _repeat(self, start: MiddleStart) -> None:
        """Start in the middle of a demonstration, or earlier where that is its end already."""
        self._seed, self._stage = start.seed, start.stage
        count = min(len(start.targets_rad), self.world.config.max_steps // 2)
        self.used = True
        while True:
            self.world.reset(start.seed)
            for target in start.targets_rad[:count]:
                self.world.step(target)
                if self._ended:
                    break
            if not self._ended:
                break
            count //= 2
        start.check(count, self.world.position_rad())

    def run(self, targets: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> float:
        """Execute targets (T, 8) until the episode ends; return the sum of the rewards."""
        reward, self.used = 0.0, True
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
        steps = world.step_index - self._began
        return EpisodeResult(self._env, self._seed, world.success, self._total, steps, self._stage)

    def _true_state(self) -> npt.NDArray[np.float32]:
        """Return (S,)."""
        world = self.world
        elapsed = torch.tensor([world.step_index / world.config.max_steps])
        found = true_state(world.scene, torch.tensor([world.is_grasped]), elapsed)[0].numpy()
        if not np.isfinite(found).all():
            raise not_finite("true state", self._env, self._seed, world.step_index, found.tolist())
        return found

    def show(self, final: bool = False) -> None:
        """Write the observation into shared memory."""
        shared, env = self._shared, self._env
        joints = self.world.position_rad()
        if joints.shape != (DOF,) or not np.isfinite(joints).all():
            step = self.world.step_index
            raise not_finite("observation state_rad", env, self._seed, step, joints.tolist())
        (shared.final_state_rad if final else shared.state_rad)[env] = joints
        if self._tells:
            (shared.final_true_state if final else shared.true_state)[env] = self._true_state()
        self.world.draw((shared.final_images if final else shared.images)[env])
