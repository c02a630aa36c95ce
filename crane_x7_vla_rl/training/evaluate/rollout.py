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
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from crane_x7_vla_rl.data.progress import episode_bar
from crane_x7_vla_rl.kinematics import UnreachableError
from crane_x7_vla_rl.policies.base import more_cameras
from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.sim.workers import Workers
from crane_x7_vla_rl.timing import pace
from crane_x7_vla_rl.training.evaluate.config import VIDEOS, EvaluateConfig
from crane_x7_vla_rl.training.evaluate.policies import Candidate, one_scene
from crane_x7_vla_rl.training.evaluate.ranks import ALONE, Ranks
from crane_x7_vla_rl.training.evaluate.scene_worker import Act, Begin, EvalWorker, Look
from crane_x7_vla_rl.training.evaluate.video import write_video
from crane_x7_vla_rl.types import WRIST, ActionChunk, Observation

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
    phase: str
    """Where it failed, see `trace.Phase`."""
    nearest_m: float
    """Smallest distance from the fingertips to the named cube."""
    pictures: tuple[tuple[bytes, int], ...] = field(default=(), repr=False)
    """What the policy of a failed episode saw, as JPEG, and the control step of each."""
    dropped: int = 0
    """Images that were lost, see `timing.Timing`."""
    first: str | None = None
    """Colour of the cube that was raised first."""


@dataclass(frozen=True)
class Rollouts:
    """All episodes, by seed, and how long they took."""

    results: tuple[Result, ...]
    control_hz: int
    wall_s: float
    policy_s: float
    """Part of it in which the policy computed."""


@dataclass(frozen=True)
class Start:
    """An episode to run."""

    seed: int
    words: str | None = None
    """Instruction for the policy; None: the scene's."""
    colour: str | None = None
    """The cube whose success is counted; None: as the seed chooses."""


@dataclass(eq=False)
class _Episode:
    """An episode that is running."""

    start: Start
    instruction: str = ""


class _RoundRobin:
    """All scenes of all processes, and the remaining starts."""

    def __init__(
        self,
        candidate: Candidate,
        config: EvaluateConfig,
        workers: Workers,
        starts: Sequence[Start],
        film_hz: int,
    ) -> None:
        self.candidate, self.config, self.workers = candidate, config, workers
        self.film_hz = film_hz
        self.starts = iter(starts)
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
            start = next(self.starts, None)
            if start is None:
                return
            self.running[worker][slot] = _Episode(start)
            if not self.candidate.batched:
                self.candidate.policy.reset()
            film = start.seed - self.config.first_seed < self.config.videos
            yield slot, Begin(start.seed, film, start.colour)

    def _choose(self, worker: int, looks: dict[int, Look]) -> Iterator[tuple[int, Act]]:
        slots, seen = [], []
        for slot, look in looks.items():
            if look.observation is not None:
                episode = self.running[worker][slot]
                words = episode.start.words
                if words is None:
                    told = _as_told(look.observation, look.named, self.config)
                else:
                    told = replace(look.observation, instruction=words)
                episode.instruction = told.instruction
                slots.append(slot)
                seen.append(told)
        if not seen:
            return
        started_s = time.monotonic()
        chunks = self._predict(seen)
        self.policy_s += time.monotonic() - started_s
        for slot, chunk in zip(slots, chunks, strict=True):
            yield slot, Act(np.array(chunk.position_rad))

    def _predict(self, seen: list[Observation]) -> list[ActionChunk]:
        """Return a chunk for each; an arm whose step is out of reach stays where it is."""
        try:
            return self.candidate.policy.predict(seen)
        except UnreachableError as error:
            if len(seen) > 1:
                return [chunk for one in seen for chunk in self._predict([one])]
            logger.warning("an arm stays where it is: %s", error)
            here = seen[0].joints.position_rad
            return [ActionChunk(here[None], self.candidate.period_s)]

    def _finish(self, episode: _Episode, look: Look) -> None:
        result = Result(
            episode.start.seed, episode.instruction, look.named, look.success, look.steps,
            look.lifted, look.phase, look.nearest_m, look.pictures, look.dropped, look.first,
        )  # fmt: skip
        self.results.append(result)
        if look.film:
            word = "success" if look.success else "failure"
            path = self.config.output / VIDEOS / f"seed-{episode.start.seed}-{word}.mp4"
            write_video(path, look.film, self.film_hz)


def roll_out(
    candidate: Candidate,
    config: EvaluateConfig,
    ranks: Ranks = ALONE,
    starts: Sequence[Start] | None = None,
) -> Rollouts:
    """Return the result of every start, in each process of `ranks` alike; raises SimError.

    `starts`: by default those of the configured seeds.
    """
    config = one_scene(config, candidate)
    source = str(config.model.path or config.policy)
    policy_hz = _control_hz(candidate.period_s, source)
    step_hz, how = pace(config.timing, policy_hz, config.execute_steps)
    world = replace(config.world, control_hz=step_hz)
    if ranks.is_first:
        _clear_videos(config.output / VIDEOS)
    ranks.wait()
    candidate.policy.reset()
    if starts is None:
        seeds = range(config.first_seed, config.first_seed + config.num_episodes)
        starts = [Start(seed) for seed in seeds]
    starts = ranks.share(starts)
    started_s = time.monotonic()
    make = partial(EvalWorker, world, WRIST in more_cameras(candidate.policy), how)
    mine, policy_s = _roll_out(candidate, config, make, starts, step_hz, ranks)
    results = tuple(sorted(ranks.gather(mine), key=lambda each: (each.seed, each.instruction)))
    slowest_s = max(ranks.gather([policy_s]))
    return Rollouts(results, world.control_hz, time.monotonic() - started_s, slowest_s)


def _roll_out(
    candidate: Candidate, config: EvaluateConfig, make: partial[EvalWorker],
    starts: Sequence[Start], film_hz: int, ranks: Ranks,
) -> tuple[list[Result], float]:  # fmt: skip
    """Return the results of this process's starts, and how long its policy computed."""
    cores = max(1, (os.cpu_count() or 1) // ranks.count)
    count = min(config.processes or cores, len(starts))
    bar: AbstractContextManager[Callable[..., None]] = nullcontext(lambda *_: None)
    if ranks.is_first:
        bar = episode_bar(config.world.task, len(starts))
    with Workers(count, make) as workers, bar as show:
        scenes = _RoundRobin(candidate, config, workers, starts, film_hz)
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
