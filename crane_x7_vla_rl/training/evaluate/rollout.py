"""Rollouts of a policy in simulation: seeds → one result per episode.

Scenes run in processes; the policy runs in this one, on one process's scenes while the others step.
Processes are served round robin, so that a sampling policy uses the same random numbers for the
same scenes in every run. A policy with a memory gets one scene at a time (see policies.py). On
several GPUs each process of torchrun has its share of the seeds.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from crane_x7_vla_rl.data.progress import episode_bar
from crane_x7_vla_rl.scenes import WorldConfig
from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.sim.workers import Workers
from crane_x7_vla_rl.training.evaluate.config import VIDEOS, EvaluateConfig
from crane_x7_vla_rl.training.evaluate.policies import Candidate, one_scene
from crane_x7_vla_rl.training.evaluate.ranks import ALONE, Ranks
from crane_x7_vla_rl.training.evaluate.scene_worker import Act, Begin, EvalWorker, Look
from crane_x7_vla_rl.training.evaluate.video import write_video
from crane_x7_vla_rl.types import Observation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """One episode."""

    seed: int
    instruction: str
    """Instruction that the policy got."""
    named: str
    """Colour of the cube whose success is counted."""
    success: bool
    steps: int
    """Control steps until success or the end."""
    lifted: tuple[str, ...]
    """Colours in the air at the end."""


@dataclass(frozen=True)
class Rollouts:
    """All episodes, by seed, and how long they took."""

    results: tuple[Result, ...]
    control_hz: int
    wall_s: float
    policy_s: float
    """Part of it in which the policy computed."""


@dataclass(eq=False)
class _Episode:
    """An episode that is running."""

    seed: int
    instruction: str = ""


class _RoundRobin:
    """All scenes of all processes, and the remaining seeds."""

    def __init__(
        self, candidate: Candidate, config: EvaluateConfig, workers: Workers, seeds: Sequence[int]
    ) -> None:
        self.candidate, self.config, self.workers = candidate, config, workers
        self.seeds = iter(seeds)
        self.running: list[dict[int, _Episode]] = [{} for _ in range(len(workers))]
        self.results: list[Result] = []
        self.policy_s = 0.0

    def begin(self, worker: int) -> None:
        """Send the first orders."""
        orders = dict(self._begins(worker, range(self.config.slots)))
        if orders:
            self.workers.send(worker, orders)

    def serve(self, worker: int) -> None:
        """Receive observations, note ended episodes, let the policy predict, send orders."""
        looks: dict[int, Look] = self.workers.receive(worker)
        ended = [slot for slot, look in looks.items() if look.observation is None]
        for slot in ended:
            self._finish(self.running[worker].pop(slot), looks[slot])
        orders: dict[int, Begin | Act] = dict(self._choose(worker, looks))
        orders |= dict(self._begins(worker, ended))
        if orders:
            self.workers.send(worker, orders)

    def _begins(self, worker: int, slots: Any) -> Iterator[tuple[int, Begin]]:
        for slot in slots:
            seed = next(self.seeds, None)
            if seed is None:
                return
            self.running[worker][slot] = _Episode(seed)
            if not self.candidate.batched:
                self.candidate.policy.reset()
            yield slot, Begin(seed, seed - self.config.first_seed < self.config.videos)

    def _choose(self, worker: int, looks: dict[int, Look]) -> Iterator[tuple[int, Act]]:
        slots, seen = [], []
        for slot, look in looks.items():
            if look.observation is not None:
                told = _as_told(look.observation, look.named, self.config)
                self.running[worker][slot].instruction = told.instruction
                slots.append(slot)
                seen.append(told)
        if not seen:
            return
        started_s = time.monotonic()
        chunks = self.candidate.policy.predict(seen)
        self.policy_s += time.monotonic() - started_s
        for slot, chunk in zip(slots, chunks, strict=True):
            yield slot, Act(np.array(chunk.position_rad[: self.config.execute_steps]))

    def _finish(self, episode: _Episode, look: Look) -> None:
        result = Result(
            episode.seed, episode.instruction, look.named, look.success, look.steps, look.lifted
        )
        self.results.append(result)
        if look.film:
            word = "success" if look.success else "failure"
            path = self.config.output / VIDEOS / f"seed-{episode.seed}-{word}.mp4"
            write_video(path, look.film, 1 / self.candidate.period_s)


def roll_out(candidate: Candidate, config: EvaluateConfig, ranks: Ranks = ALONE) -> Rollouts:
    """Return the result of every seed, in each process of `ranks` alike; raises SimError."""
    config = one_scene(config, candidate)
    source = str(config.model.path or config.policy)
    world = replace(config.world, control_hz=_control_hz(candidate.period_s, source))
    if ranks.is_first:
        _clear_videos(config.output / VIDEOS)
    ranks.wait()
    candidate.policy.reset()
    seeds = ranks.share(range(config.first_seed, config.first_seed + config.num_episodes))
    started_s = time.monotonic()
    mine, policy_s = _roll_out(candidate, config, world, seeds, ranks)
    results = tuple(sorted(ranks.gather(mine), key=lambda result: result.seed))
    slowest_s = max(ranks.gather([policy_s]))
    return Rollouts(results, world.control_hz, time.monotonic() - started_s, slowest_s)


def _roll_out(
    candidate: Candidate, config: EvaluateConfig, world: WorldConfig, seeds: Sequence[int],
    ranks: Ranks,
) -> tuple[list[Result], float]:  # fmt: skip
    """Return the results of this process's seeds, and how long its policy computed."""
    cores = max(1, (os.cpu_count() or 1) // ranks.count)
    count = min(config.processes or cores, len(seeds))
    bar: AbstractContextManager[Callable[..., None]] = nullcontext(lambda *_: None)
    if ranks.is_first:
        bar = episode_bar(config.world.task, len(seeds))
    with Workers(count, partial(EvalWorker, world)) as workers, bar as show:
        scenes = _RoundRobin(candidate, config, workers, seeds)
        for worker in range(count):
            scenes.begin(worker)
        while any(scenes.running):
            for worker in range(count):
                if scenes.running[worker]:
                    scenes.serve(worker)
            show(len(scenes.results), _success_so_far(scenes.results))
    return scenes.results, scenes.policy_s


def _control_hz(period_s: float, source: str) -> int:
    rate = 1 / period_s
    if abs(rate - round(rate)) > 1e-6:
        raise SimError(
            f"{source}: its period_s of {period_s} makes {rate:.3f} steps/s, but the"
            " simulation accepts only whole rates"
        )
    return round(rate)


def _as_told(observation: Observation, named: str, config: EvaluateConfig) -> Observation:
    """Return the observation with the instruction for the policy."""
    if not config.swapped:
        return observation
    colours = config.world.colours
    other = colours[(colours.index(named) + 1) % len(colours)]
    return replace(observation, instruction=observation.instruction.replace(named, other))


def _clear_videos(folder: Path) -> None:
    """Remove the videos of an earlier evaluation, so that they do not mix with this one's."""
    for path in folder.glob("seed-*.mp4"):
        path.unlink()


def _success_so_far(results: list[Result]) -> str:
    good = sum(result.success for result in results)
    return f"{good} of {len(results)} succeeded"
