"""`demos`: record a scripted expert in simulation. Configuration → a LeRobot data set.

`generate` runs one simulation per process and writes episodes in the order of their seeds, so a
configuration gives the same scenes with any number of processes, and a killed run can be resumed.
`demos.json` next to the data set holds the configuration. Failed episodes go to a separate data
set, `<name>.failures`, so that no run trains on them by mistake.

Noise is added to the targets that the arm receives, not to the label: the recorded action is the
expert's target from the position to which the noise has moved the arm. With `--chain`, each scene
is several tasks in a row, and each task an episode.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

from crane_x7_vla_rl.data.demos.config import (
    DemosConfig,
    DemosReport,
    add_arguments,
    from_arguments,
)
from crane_x7_vla_rl.data.progress import episode_bar
from crane_x7_vla_rl.policies.base import ModelOptions

__all__ = ["add_arguments", "generate", "run"]


def run(args: argparse.Namespace) -> int:
    """Record; returns 0. Raises DataError and SimError."""
    config = from_arguments(args)
    report = generate(config, resume=args.resume)
    print(
        f"{config.output}: {report.successes} demonstrations of {config.world.task}; the expert"
        f" succeeded in {report.rate:.1%} of {report.successes + report.failures}"
        f" {'tasks' if config.chain else 'scenes'}"
    )
    return 0


def generate(config: DemosConfig, *, resume: bool = False) -> DemosReport:
    """Record until the data set has `config.episodes`.

    Raises DataError, SimError, and PolicyLoadError for what is wrong with `--from`.
    """
    if config.start is not None:
        from crane_x7_vla_rl.policies import load
        from crane_x7_vla_rl.policies.kind import kind_of
        from crane_x7_vla_rl.policies.preflight import OptionNames

        start = ModelOptions(path=config.start)
        load.check(kind_of(config.start), start, OptionNames(path="--from"))
    from crane_x7_vla_rl.data.demos.files import DemoFiles

    with DemoFiles(config, resume=resume) as files:
        from crane_x7_vla_rl.data.demos.chain import ChainRecorder
        from crane_x7_vla_rl.data.demos.recorder import DemoRecorder
        from crane_x7_vla_rl.sim.workers import Workers

        recorder = ChainRecorder if config.chain else DemoRecorder

        wanted = config.episodes - files.successes
        if wanted <= 0:
            return files.report
        count = min(config.processes or os.cpu_count() or 1, wanted)
        words = f"demonstrations of {config.world.task}"
        with (
            Workers(count, partial(recorder, config)) as workers,
            episode_bar(words, config.episodes) as show,
        ):
            show(files.successes)
            for seed, found in _in_order(workers, files.next_seed()):
                for episode in found if isinstance(found, list) else [found]:
                    files.add(seed, episode)
                show(files.successes)
                if files.successes >= config.episodes:
                    break
        return files.report


def _in_order(workers: Any, first_seed: int) -> Iterator[tuple[int, Any]]:
    """Yield (seed, its episode or episodes) by rising seed, while the workers run later seeds."""
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
