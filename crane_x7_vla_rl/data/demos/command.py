"""Demonstrations from the simulation: a scripted expert solves fresh scenes, a data set leaves.

`generate` runs one simulation per process and writes episodes in the order of their seeds, so that
a configuration gives the same scenes however many processes there are, and a run that was killed
goes on where it stopped. Beside the LeRobot data set, whose rows name the seeds, lies `demos.json`
with the configuration. Episodes that failed go to a data set of their own, `<name>.failures`, so
that nobody learns from them unawares.

Noise moves the arm, not the lesson: the recorded action is what the expert wanted, from wherever
the noise had brought it.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl import scenes
from crane_x7_vla_rl.scenes import WorldConfig

logger = logging.getLogger(__name__)

CONFIG: Final = "demos.json"
FAILURES: Final = ".failures"
PATIENCE: Final = 50
"""So many failures more than successes mean that the scene cannot be solved."""


@dataclass(frozen=True)
class DemosConfig:
    """What to record."""

    output: Path
    """Folder of the data set."""
    episodes: int = 200
    """Successful ones; failures are not counted."""
    first_seed: int = 0
    world: WorldConfig = field(default_factory=WorldConfig)
    joint_noise_rad: float = 0.0
    """Largest standard deviation of the noise on what the arm is sent; each episode draws its own
    share of it, so that there are calm ones, too."""
    rearrange: int = 0
    """Put things elsewhere up to so many times while the arm is on its way: one episode then shows
    as many scenes, and what to do in each from wherever the arm happens to be."""
    arm_rad_s: float = 1.6
    """Speed of the arm; see sim.expert.Manner."""
    keep_wrist: bool = False
    """Never turn the wrist towards the cube; see sim.expert.Manner."""
    processes: int = 0
    """0 for one per core."""

    def content(self) -> dict[str, Any]:
        """What decides the episodes, for demos.json."""
        return {
            "first_seed": self.first_seed,
            "joint_noise_rad": self.joint_noise_rad,
            "rearrange": self.rearrange,
            "arm_rad_s": self.arm_rad_s,
            "keep_wrist": self.keep_wrist,
            "world": self.world.as_dict(),
        }


@dataclass(frozen=True)
class DemosReport:
    """What was recorded, earlier runs included."""

    successes: int
    failures: int

    @property
    def rate(self) -> float:
        """Share of the expert's attempts that succeeded."""
        return self.successes / max(1, self.successes + self.failures)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `demos`."""
    default = DemosConfig(Path())
    parser.add_argument("output", type=Path, help="folder of the data set")
    parser.add_argument(
        "--episodes", type=scenes.count, default=default.episodes, metavar="N",
        help="how many that succeeded (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--first-seed", type=int, default=0, help="of the scenes (%(default)s)")
    parser.add_argument(
        "--joint-noise-rad", type=scenes.amount, default=0.0,
        help="push the arm about; the lesson stays the expert's (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--rearrange", type=int, default=0, metavar="N",
        help="put things elsewhere up to N times while the arm is on its way (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--arm-rad-s", type=scenes.amount, default=default.arm_rad_s,
        help="speed of the arm (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--keep-wrist", action="store_true", help="never turn the wrist towards the cube"
    )
    parser.add_argument("--processes", type=scenes.count, help="simulations (one per core)")
    parser.add_argument("--resume", action="store_true", help="go on with the data set")
    scenes.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Record; returns 0. Raises TrainingError."""
    from crane_x7_vla_rl.data.episode import DataError
    from crane_x7_vla_rl.sim.errors import SimError
    from crane_x7_vla_rl.training.errors import DataProblemError, SimulationError

    config = DemosConfig(
        output=args.output,
        episodes=args.episodes,
        first_seed=args.first_seed,
        world=scenes.from_arguments(args),
        joint_noise_rad=args.joint_noise_rad,
        rearrange=args.rearrange,
        arm_rad_s=args.arm_rad_s,
        keep_wrist=args.keep_wrist,
        processes=args.processes or 0,
    )
    try:
        report = generate(config, resume=args.resume)
    except DataError as error:
        raise DataProblemError(str(error)) from error
    except SimError as error:
        raise SimulationError(str(error)) from error
    print(
        f"{config.output}: {report.successes} demonstrations of {config.world.task}; the expert"
        f" succeeded in {report.rate:.1%} of {report.successes + report.failures} scenes"
    )
    return 0


def generate(config: DemosConfig, *, resume: bool = False) -> DemosReport:
    """Record until there are `config.episodes`; raises DataError and SimError."""
    from crane_x7_vla_rl.data.demos.files import DemoFiles
    from crane_x7_vla_rl.data.demos.recorder import make_recorder
    from crane_x7_vla_rl.sim.workers import Workers

    with DemoFiles(config, resume=resume) as files:
        wanted = config.episodes - files.successes
        if wanted <= 0:
            return files.report
        count = min(config.processes or os.cpu_count() or 1, wanted)
        with Workers(count, partial(make_recorder, config)) as workers, _bar(config) as bar:
            bar.update(files.successes)
            for seed, episode in _in_order(workers, files.next_seed()):
                files.add(seed, episode)
                bar.update(files.successes)
                if files.successes >= config.episodes:
                    break
        return files.report


def _in_order(workers: Any, first_seed: int) -> Iterator[tuple[int, Any]]:
    """Yield (seed, episode) by rising seed, while all workers are at seeds further on."""
    seed_of = {worker: first_seed + worker for worker in range(len(workers))}
    for worker, seed in seed_of.items():
        workers.send(worker, seed)
    coming, done, due = first_seed + len(workers), {}, first_seed
    while True:
        for worker in workers.ready(list(seed_of)):
            done[seed_of[worker]] = workers.receive(worker)
            seed_of[worker], coming = coming, coming + 1
            workers.send(worker, seed_of[worker])
        while due in done:
            yield due, done.pop(due)
            due += 1


class _bar:
    """A progress bar of episodes."""

    def __init__(self, config: DemosConfig) -> None:
        from rich import progress

        columns = (*progress.Progress.get_default_columns(), progress.MofNCompleteColumn())
        self._bar = progress.Progress(*columns)
        self._task = self._bar.add_task(f"demonstrations of {config.world.task}", total=None)
        self._total = config.episodes

    def __enter__(self) -> _bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, episodes: int) -> None:
        """Show how many there are."""
        self._bar.update(self._task, completed=episodes, total=self._total)
