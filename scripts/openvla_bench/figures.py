"""Shared parts of bench_openvla's cases: models, inputs, timing, and the table of figures."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from typing import Any, Literal

import torch

from crane_x7_vla_rl.policies.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.model.config import PATCHES
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
from openvla_bench.baseline import Baseline
from openvla_bench.limits import Device, synchronise

TEXT = 22
"""Prompt tokens after BOS and before 29871: 280 in all, as in the project's table of limits."""
TOKENS = 1 + PATCHES + TEXT + 1
INPUTS = 5
"""Number of different batches, used one after another. A model keeps the results of its last
inputs, so no two calls in a row, and no two of one run, may get the same batch: `in_turn` sees to
it while this is no divisor of the number of runs."""
SEED = 0


@dataclass
class Bench:
    """Inputs and results of every case."""

    device: torch.device
    runner: Runner
    baseline: Baseline
    here: Device
    rounds: int
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def model(self) -> OpenVLA:
        """This project's model."""
        return self.runner.model

    def row(
        self,
        name: str,
        value: float,
        unit: str,
        baseline: float | None = None,
        *,
        better: Literal["lower", "higher"] = "lower",
        target: float | None = None,
        least_ratio: float | None = None,
    ) -> None:
        """Keep and print a figure; `target` bounds the value, `least_ratio` its ratio to the
        baseline."""
        ratio = met = wanted = None
        if baseline:
            ratio = baseline / value if better == "lower" else value / baseline
        if target is not None:
            met = value <= target if better == "lower" else value >= target
            wanted = f"{'<=' if better == 'lower' else '>='} {target:g}"
        elif least_ratio is not None:
            met = ratio is not None and ratio >= least_ratio
            wanted = f"ratio >= {least_ratio:g}"
        keys = ("name", "value", "unit", "baseline", "ratio", "target", "met")
        row = (name, value, unit, baseline, ratio, wanted, met)
        self.rows.append(dict(zip(keys, row, strict=True)))
        beside = "" if baseline is None else f"  baseline {baseline:.4g}, ratio {ratio:.3g}"
        verdict = "" if met is None else f"  target {wanted}: {'met' if met else 'NOT met'}"
        print(f"{name}: {value:.4g} {unit}{beside}{verdict}", flush=True)


Inputs = tuple[torch.Tensor, list[torch.Tensor]]
Run = Callable[[], object]


def inputs(bench: Bench, batch: int) -> list[Inputs]:
    """Return INPUTS batches of pixels and prompts of `TEXT` tokens, all different."""
    like = bench.model.projector.fc3.bias
    generator = torch.Generator().manual_seed(SEED)
    made: list[Inputs] = []
    for _ in range(INPUTS):
        pixels = torch.randn(batch, 6, 224, 224, generator=generator).to(like)
        text = torch.randint(3, 29000, (batch, TEXT), generator=generator)
        made.append((pixels, [torch.cat([torch.ones(1, dtype=torch.int64), row]) for row in text]))
    return made


def in_turn(
    bench: Bench, batches: Sequence[Inputs], *runs: Callable[[Inputs], object]
) -> list[float]:
    """Return each run's median seconds over `rounds`, taken alternately after a warm-up.

    Every call gets another batch than the call before it, whatever the run.
    """
    for run in runs:
        for one in batches[:3]:
            run(one)
    synchronise(bench.device)
    taken: list[list[float]] = [[] for _ in runs]
    turn = cycle(batches)
    for _ in range(bench.rounds):
        for run, seconds in zip(runs, taken, strict=True):
            one = next(turn)
            synchronise(bench.device)
            started_s = time.perf_counter()
            run(one)
            synchronise(bench.device)
            seconds.append(time.perf_counter() - started_s)
    return [statistics.median(seconds) for seconds in taken]


def generate(bench: Bench, batch: int, steps: int) -> tuple[float, float]:
    """Return median seconds per batch of model and baseline; on CUDA also record peak memory."""
    batches = inputs(bench, batch)
    runs: list[Callable[[Inputs], object]] = [
        lambda one: bench.runner.roll_out(*one, steps).tokens.cpu(),
        lambda one: bench.baseline.generate(*one, steps).cpu(),
    ]
    ours, theirs = in_turn(bench, batches, *runs)
    note_memory(
        bench, f"batch {batch}, {steps} tokens", *(partial(run, batches[0]) for run in runs)
    )
    return ours, theirs


def note_memory(bench: Bench, name: str, ours: Run, theirs: Run) -> None:
    """Record the GPU memory of each."""
    if bench.device.type == "cuda":
        bench.row(f"{name}: peak memory", peak_gb(bench, ours), "GB", peak_gb(bench, theirs))


def peak_gb(bench: Bench, run: Run) -> float:
    """Return the peak GPU memory during `run`, weights and buffers included; 0 on a CPU."""
    if bench.device.type != "cuda":
        return 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(bench.device)
    run()
    synchronise(bench.device)
    return torch.cuda.max_memory_allocated(bench.device) / 1e9
