"""What a process does for the CPU backend: scenes by environment, stepped by order.

An `Order` for environments of one group comes in over the pipe, their targets through shared
memory; an `Answer` leaves, what the scenes look like through shared memory again. Each picture is
drawn once, straight into it, and only when a policy is going to look: after a chunk, or at the end
of a truncated episode.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crane_x7_vla_rl.robot import DOF
from crane_x7_vla_rl.sim.vector.make import Episode, not_finite
from crane_x7_vla_rl.sim.vector.shared_memory import SharedArrays, SharedPlan
from crane_x7_vla_rl.sim.world import World
from crane_x7_vla_rl.vector_config import VectorConfig


@dataclass(frozen=True)
class Task:
    """What one environment shall do."""

    env: int
    seed: int
    """Of the episode to begin: now, or when this one ends."""
    steps: int
    """Of the shared targets to carry out; 0 begins the episode."""


@dataclass(frozen=True)
class Order:
    """Tasks for environments of one group."""

    group: int
    tasks: tuple[Task, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of one task."""

    env: int
    instruction: str
    """Of the episode that is running now."""
    reward: float = 0.0
    steps: int = 0
    truncated: bool = False
    ended: Episode | None = None
    """The episode that has ended, terminated unless `truncated`."""


@dataclass(frozen=True)
class Answer:
    """The outcomes of an order."""

    group: int
    outcomes: tuple[Outcome, ...]


def make_stage(config: VectorConfig, plan: SharedPlan) -> Stage:
    """Return the handler of a process."""
    return Stage(config, plan.map())


class Stage:
    """Scenes by environment, each made when it is first used."""

    def __init__(self, config: VectorConfig, shared: SharedArrays) -> None:
        self.shared = shared
        self.rooms: dict[int, Room] = {}
        self._config = config

    def __call__(self, order: Order) -> Answer:
        """Carry out; raises SimError where a scene has gone wrong."""
        return Answer(order.group, tuple(self._carry_out(task) for task in order.tasks))

    def _carry_out(self, task: Task) -> Outcome:
        if task.env not in self.rooms:
            self.rooms[task.env] = Room(self._config, self.shared, task.env)
        room = self.rooms[task.env]
        if not task.steps:
            room.begin(task.seed)
            room.show()
            return Outcome(task.env, room.world.instruction)
        targets = self.shared.targets_rad[task.env, : task.steps].astype(np.float64)
        before = room.world.step_index
        reward = room.run(targets)
        steps = room.world.step_index - before
        ended, truncated = room.ended_episode(), room.truncated
        if ended is not None:
            if truncated:
                room.show(final=True)
            room.begin(task.seed)
        room.show()
        return Outcome(task.env, room.world.instruction, reward, steps, truncated, ended)


class Room:
    """One environment: a world, its episode and what the episode has paid."""

    def __init__(self, config: VectorConfig, shared: SharedArrays, env: int) -> None:
        self.world = World(config.world)
        self._rewards, self._shared, self._env = config.rewards, shared, env
        self._seed, self._total, self._progress = 0, 0.0, 0.0

    def begin(self, seed: int) -> None:
        """Begin the episode of a seed."""
        self.world.reset(seed)
        self._seed, self._total = seed, 0.0
        self._progress = self.world.progress() if self._rewards.kind == "dense" else 0.0

    def run(self, targets: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> float:
        """Carry out targets (T, 8) until the episode ends; return the reward, summed."""
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
        """Return what the last step pays, see vector_config.Rewards."""
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
        """Whether the episode has ended for want of time alone."""
        return self._out_of_time and self._rewards.ends_at_success and not self.world.success

    def ended_episode(self) -> Episode | None:
        """Return the episode where it has ended."""
        if not self._ended:
            return None
        world = self.world
        return Episode(self._env, self._seed, world.success, self._total, world.step_index)

    def show(self, final: bool = False) -> None:
        """Write what there is to see into shared memory."""
        shared, env = self._shared, self._env
        joints = self.world.position_rad()
        if joints.shape != (DOF,) or not np.isfinite(joints).all():
            step = self.world.step_index
            raise not_finite("observation state_rad", env, self._seed, step, joints.tolist())
        (shared.final_state_rad if final else shared.state_rad)[env] = joints
        self.world.draw((shared.final_images if final else shared.images)[env])
