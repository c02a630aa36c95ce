"""The rollout of ManiSkill's own PPO baseline for images, on the same task, for bench_rl.

The baseline (examples/baselines/ppo/ppo_rgb.py at haosulab/ManiSkill) is not part of the package on
PyPI. This file reimplements its work between two updates: ManiSkill's wrappers that flatten the
observation to an image and a state and that reset ended episodes; three convolutions, then a linear
layer of 256, next to one for the state; heads of 512 for a Gaussian over joint deltas and for the
value; storage of every step; the value of the last observation of ended episodes.

On a CPU, PhysX has one scene per simulation, so its script can have only a single environment
(`one`); `many` runs the same network for as many environments as the other sides, through
ManiSkill's wrapper for gymnasium and gymnasium's AsyncVectorEnv with its shared memory. Each runs
in a separate process, `one` with the default numbers of threads of torch and lavapipe.

Legend: T steps, N environments.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from crane_x7_vla_rl.scenes import WorldConfig
from crane_x7_vla_rl.sim.workers import ANSWER_S, END_S, SIMULATION
from rl_bench.plain_envs import make_task

Kind = Literal["one", "many"]
Observation = dict[str, Tensor]
FEATURES, WIDTH = 256, 512


@dataclass(frozen=True)
class Setup:
    """Kind of environments: `one` or `many`."""

    kind: Kind
    world: WorldConfig
    count: int
    """N; 1 for `one`."""
    steps: int
    """T."""


class Network(nn.Module):
    """Image and state → action and value."""

    def __init__(self, seen: Observation, actions: int) -> None:
        super().__init__()
        self.picture = nn.Sequential(
            nn.Conv2d(seen["rgb"].shape[-1], 32, 8, 4), nn.ReLU(),
            nn.Conv2d(32, 64, 4, 2), nn.ReLU(),
            nn.Conv2d(64, 64, 3, 1), nn.ReLU(), nn.Flatten(),
            nn.LazyLinear(FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.state = nn.Linear(seen["state"].shape[-1], FEATURES)
        self.actor, self.critic = (
            nn.Sequential(nn.Linear(2 * FEATURES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, outputs))
            for outputs in (actions, 1)
        )
        self.log_std = nn.Parameter(torch.full((1, actions), -0.5))

    def features(self, seen: Observation) -> Tensor:
        """Return (N, 512) for images (N, H, W, 3) uint8 and states."""
        pixels = seen["rgb"].float().permute(0, 3, 1, 2) / 255
        return torch.cat([self.picture(pixels), self.state(seen["state"])], dim=1)

    def choose(self, seen: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """Return actions (N, 8), log-probabilities (N,) and values (N,)."""
        found = self.features(seen)
        spread = torch.distributions.Normal(self.actor(found), self.log_std.exp())
        action = spread.sample()
        return action, spread.log_prob(action).sum(1), self.critic(found)[:, 0]

    def worth(self, seen: Observation) -> Tensor:
        """Return the values (N,)."""
        return self.critic(self.features(seen))[:, 0]


def make_one(world: WorldConfig) -> Any:
    """Return ManiSkill's vector environment of a single scene."""
    from mani_skill.vector.wrappers.gymnasium import ManiSkillVectorEnv

    return ManiSkillVectorEnv(_flat(world), 1, ignore_terminations=False, record_metrics=True)


def make_many(world: WorldConfig, count: int) -> Any:
    """Return gymnasium's vector environment, a process for each scene."""
    from gymnasium.vector import AsyncVectorEnv, AutoresetMode

    def scene() -> Any:
        from mani_skill.utils.wrappers.gymnasium import CPUGymWrapper

        os.putenv("LP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        return CPUGymWrapper(_flat(world), record_metrics=True)

    return AsyncVectorEnv(
        [scene] * count, context="forkserver", autoreset_mode=AutoresetMode.SAME_STEP
    )


def _flat(world: WorldConfig) -> Any:
    from mani_skill.utils.wrappers.flatten import FlattenRGBDObservationWrapper

    env = make_task(world, "pd_joint_delta_pos", "normalized_dense")
    return FlattenRGBDObservationWrapper(env, rgb=True, depth=False, state=True)


class Rollouts:
    """Rollouts of one kind of environments; called in a separate process."""

    def __init__(self, setup: Setup) -> None:
        self._setup, world = setup, setup.world
        if setup.kind == "one":
            self._env = make_one(world)
        else:
            self._env = make_many(world, setup.count)
        # Vector environments of both kinds have the spaces of a single environment.
        actions = int(self._env.single_action_space.shape[0])
        self._seen = _tensors(self._env.reset(seed=0)[0])
        self._network = Network(self._seen, actions)
        shape = (setup.steps, setup.count)
        self._views = {name: x.new_zeros(shape + x.shape[1:]) for name, x in self._seen.items()}
        self._actions = torch.zeros(*shape, actions)
        self._log_probs, self._values, self._rewards, self._ends, self._finals = torch.zeros(
            5, *shape
        ).unbind()

    @torch.no_grad()
    def __call__(self) -> tuple[int, float]:
        """Roll out T steps; return control steps and seconds."""
        started_s = time.perf_counter()
        for step in range(self._setup.steps):
            for name, x in self._seen.items():
                self._views[name][step] = x
            action, self._log_probs[step], self._values[step] = self._network.choose(self._seen)
            self._actions[step] = action
            # gymnasium's pipes pickle arrays faster than tensors.
            sent = action if self._setup.kind == "one" else action.clamp(-1, 1).numpy()
            seen, reward, terminated, truncated, told = self._env.step(sent)
            self._seen = _tensors(seen)
            self._rewards[step] = torch.as_tensor(reward).view(-1)
            ended = torch.as_tensor(terminated) | torch.as_tensor(truncated)
            self._ends[step] = ended
            if bool(ended.any()):
                self._finals[step, ended] = self._network.worth(self._final(told, ended))
        self._network.worth(self._seen)
        return self._setup.steps * self._setup.count, time.perf_counter() - started_s

    def _final(self, told: dict[str, Any], ended: Tensor) -> Observation:
        """Return the last observations, only the rows of ended episodes."""
        if self._setup.kind == "one":
            return {name: x[ended] for name, x in told["final_observation"].items()}
        rows = [told["final_obs"][place] for place in ended.nonzero()[:, 0].tolist()]
        return {
            name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in self._seen
        }

    def close(self) -> None:
        """End the simulation."""
        self._env.close()


def _tensors(seen: dict[str, Any]) -> Observation:
    return {name: torch.as_tensor(x) for name, x in seen.items()}


class Baseline:
    """`Rollouts` in another process, one at a time."""

    def __init__(self, setup: Setup) -> None:
        """Start the process; it is ready when `turn` answers for the first time."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([SIMULATION])
        self._pipe, there = context.Pipe()
        # A daemon could not start its own processes.
        self._process = context.Process(target=_serve, args=(there, setup), daemon=False)
        self._process.start()
        there.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pipe.close()
        self._process.join(END_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def turn(self) -> float:
        """Roll out; return control steps/s."""
        self._pipe.send(None)
        if not self._pipe.poll(ANSWER_S):
            raise RuntimeError(f"ManiSkill's rollout did not answer within {ANSWER_S:g} s")
        answer = self._pipe.recv()
        if isinstance(answer, str):
            raise RuntimeError(f"ManiSkill's rollout failed: {answer}")
        steps, seconds = answer
        return float(steps / seconds)


def _serve(pipe: Connection, setup: Setup) -> None:
    """Roll out at every request, until the pipe closes."""
    rollouts: Rollouts | None = None
    try:
        while True:
            try:
                pipe.recv()
            except (EOFError, OSError):
                return
            try:
                rollouts = rollouts or Rollouts(setup)
                answer: object = rollouts()
            except Exception:  # the edge of a process: the requester must see the error
                answer = traceback.format_exc()
            pipe.send(answer)
    finally:
        if rollouts is not None:
            rollouts.close()
