"""The trainer's overhead, for bench_rl: a short run of `train` and its metrics.jsonl.

It has no baseline: the figure is the share of time that is neither simulation nor inference nor
learning.
"""

from __future__ import annotations

import json
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from statistics import fmean, median

from crane_x7_vla_rl.training.rl.loop import train
from crane_x7_vla_rl.training.tracking import METRICS
from rl_bench.case import Case

PARTS = ("simulate_s", "infer_s", "learn_s")


@dataclass(frozen=True)
class Lost:
    """Overhead of a run of the trainer."""

    in_updates: float
    """% of an update, median; nothing was evaluated or saved meanwhile."""
    with_saving: float
    """% of all time, with evaluations and checkpoints as often as in the recipe."""
    every: int
    """Updates from one evaluation to the next in the recipe."""
    extra_s: float
    """Seconds of one evaluation and two checkpoints."""
    update_s: float
    """Mean."""


class FirstAsked:
    """A clock that records its first reading: when the trainer is ready to begin."""

    def __init__(self) -> None:
        self.began_s: float | None = None

    def __call__(self) -> float:
        now_s = time.perf_counter()
        if self.began_s is None:
            self.began_s = now_s
        return now_s


def measure(case: Case) -> Lost:
    """Train for the updates of the scale; an evaluation follows the last one."""
    recipe, count = case.config("recipe"), case.scale.trained
    changes = {
        "training.num_updates": count,
        "evaluation.every": count,
        "output.save_every": count + 1,
    }
    config = case.config("trainer", changes)
    clock = FirstAsked()
    log_path = case.output / "trainer.log"
    with log_path.open("w") as log, redirect_stderr(log), redirect_stdout(log):
        train(config, None, clock)
    ended_s = time.perf_counter()
    if clock.began_s is None:
        raise RuntimeError("the trainer never read the clock")
    text = (config.output_dir / METRICS).read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    if len(rows) != count:
        raise RuntimeError(f"{METRICS} has {len(rows)} updates, expected {count}")
    used = [sum(row[part] for part in PARTS) for row in rows]
    whole = [row["update_s"] for row in rows]
    shares = [100 * (1 - part / all_s) for part, all_s in zip(used, whole, strict=True)]
    extra_s = ended_s - clock.began_s - sum(whole)
    every = recipe.evaluation.every or recipe.output.save_every
    with_saving = 100 * (1 - every * fmean(used) / (every * fmean(whole) + extra_s))
    return Lost(median(shares), with_saving, every, extra_s, fmean(whole))
