"""This project's side of bench_sft: a real run of the trainer, opened once and advanced update by
update.

The work of `sft` between two updates (metrics, TensorBoard, the check for SIGTERM) is included in
the time; saving is not, on either side. The clock starts and stops when the decoding threads are
idle, so that a round includes the decoding of exactly its batches, and no thread works during the
other side's turn.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from openvla_bench.limits import synchronise

from crane_x7_vla_rl.training.checkpoints.training_state import Progress
from crane_x7_vla_rl.training.config.sections import LoggingConfig
from crane_x7_vla_rl.training.interrupt import Interrupt
from crane_x7_vla_rl.training.run_log import RunLog
from crane_x7_vla_rl.training.sft.config import (
    DataConfig,
    OutputConfig,
    PolicyConfig,
    SftConfig,
    TrainingConfig,
)
from crane_x7_vla_rl.training.sft.loop import _update
from crane_x7_vla_rl.training.sft.run import SftRun, open_run
from crane_x7_vla_rl.training.tracking import METRICS
from sft_bench.world import Scale

WAIT_S = 60.0


@dataclass(frozen=True)
class Case:
    """Inputs of both sides."""

    model: Path
    data: Path
    scale: Scale
    device: torch.device
    precision: str
    """bf16 or fp32."""
    cache_mb: int
    """This side's cache of decoded images; the other side has none."""

    @property
    def halved(self) -> bool:
        """Whether products are in bfloat16."""
        return self.precision == "bf16"

    @property
    def steps(self) -> int:
        """Updates of each side, all rounds together."""
        return self.scale.rounds * (self.scale.warm + self.scale.updates)


def configuration(case: Case, output: Path) -> SftConfig:
    """Return the defaults of `sft`, with the case's changes."""
    return SftConfig(
        backend="openvla",
        data=DataConfig(root=str(case.data), cache_mb=case.cache_mb),
        training=TrainingConfig(
            batch_size=case.scale.batch,
            max_steps=case.steps,
            precision=case.precision,  # type: ignore[arg-type]
            device=case.device.type,  # type: ignore[arg-type]
        ),
        policy=PolicyConfig(model=str(case.model)),
        output=OutputConfig(dir=str(output)),
        logging=LoggingConfig(log_steps=10),
    )


@dataclass
class Ours:
    """The run, its progress and its measurements."""

    run: SftRun
    progress: Progress
    case: Case
    rates: list[float] = field(default_factory=list)
    """Samples/s of each round."""
    counted: set[int] = field(default_factory=set)
    """Numbers of the updates behind `rates`."""
    interrupt: Interrupt = field(default_factory=Interrupt)
    """Not entered: Ctrl-C ends the benchmark at once."""

    def turn(self) -> None:
        """Run one round of updates."""
        self._updates(self.case.scale.warm)
        first = self.progress.step + 1
        taken_s = self.timed(lambda: self._updates(self.case.scale.updates))
        self.rates.append(self.case.scale.updates * self.case.scale.batch / taken_s)
        self.counted |= set(range(first, self.progress.step + 1))

    def timed(self, work: Callable[[], object]) -> float:
        """Return the seconds of `work`, including its decoding."""
        self._settle()
        started_s = time.perf_counter()
        work()
        self._settle()
        return time.perf_counter() - started_s

    def _settle(self) -> None:
        """Wait until the decoding threads and the device are idle."""
        if wait(self.run.batches._ahead, WAIT_S).not_done:
            raise RuntimeError(f"{self.case.data}: threads still decode after {WAIT_S:g} s")
        synchronise(self.case.device)

    def _updates(self, count: int) -> None:
        for _ in range(count):
            self.progress, _ = _update(self.run, self.progress, self.case.steps, self.interrupt)

    def metrics(self) -> list[dict[str, Any]]:
        """Return metrics.jsonl's figures of the updates that count."""
        lines = (self.run.folder / METRICS).read_text().splitlines()
        return [row for row in map(json.loads, lines) if row["step"] in self.counted]

    def data_share(self) -> float:
        """Return the median share of an update spent waiting for samples and preparing them, %."""
        rows = self.metrics()
        return 100 * median(row["data_s"] / (row["data_s"] + row["update_s"]) for row in rows)

    def need(self) -> float:
        """Return the samples/s of the model if loading took no time."""
        return self.case.scale.batch / median(row["update_s"] for row in self.metrics())


@contextmanager
def opened(case: Case, output: Path) -> Iterator[Ours]:
    """Yield this side, ready for its first update."""
    # A progress bar would be drawn during the other side's turns.
    with (output.parent / "stderr").open("w") as log, redirect_stderr(log):
        context = open_run(configuration(case, output), None, time.perf_counter, RunLog())
        run, progress = context.__enter__()
    try:
        yield Ours(run, progress, case)
    finally:
        context.__exit__(*sys.exc_info())
