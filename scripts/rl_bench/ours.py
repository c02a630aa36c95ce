"""This project's side of bench_rl: a real run of the trainer, opened once and advanced update by
update.

The work of `train` between updates (sums over processes, metrics) is not in these times; the
trainer's own run (see `trainer`) measures it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace

import torch
from openvla_bench.limits import synchronise

from crane_x7_vla_rl.training.rl.rollout import collect
from crane_x7_vla_rl.training.rl.run import RlRun, open_run
from crane_x7_vla_rl.training.rl.update import UpdateIndex, update
from crane_x7_vla_rl.training.run_log import RunLog
from rl_bench.case import Case, Round

WARM_STEPS = 2


@dataclass
class Ours:
    """The run and its progress."""

    case: Case
    run: RlRun
    threads: int
    """Threads of torch, as the trainer sets them."""
    number: int = 0
    """Updates so far."""

    @property
    def targets(self) -> list[str]:
        """Names of the layers that have adapters."""
        modules = self.run.agent.policy.named_modules()
        return [name for name, module in modules if hasattr(module, "lora_A")]

    def warm(self) -> None:
        """Run a short round as a warm-up."""
        self.turn(WARM_STEPS)

    def turn(self, steps: int | None = None) -> Round:
        """Roll out (`steps` decisions per environment, or as configured) and learn."""
        torch.set_num_threads(self.threads)
        config, ppo = self.run.rollout, self.run.config.ppo
        config = config if steps is None else replace(config, steps=steps)
        started_s = time.perf_counter()
        found = collect(config, self.number)
        synchronise(self.case.device)
        rolled_s = time.perf_counter()
        if found is None:
            raise RuntimeError("a rollout ended early without a stop")
        learned = update(
            self.run.agent,
            found.buffer,
            ppo,
            UpdateIndex(self.number, self.run.config.training.seed),
        )
        synchronise(self.case.device)
        ended_s = time.perf_counter()
        self.number += 1
        if found.discarded:
            raise RuntimeError(f"{found.discarded} decisions were lost because a simulation failed")
        return Round(
            config.steps * config.env.num_envs, found.env_steps, learned.samples * ppo.epochs,
            learned.minibatches, found.simulate_s, rolled_s - started_s, ended_s - rolled_s,
        )  # fmt: skip


@contextmanager
def opened(case: Case) -> Iterator[Ours]:
    """Yield this side, ready for its first update."""
    # A progress bar would be drawn during the other sides' turns.
    with (case.output / "ours.stderr").open("w") as log, redirect_stderr(log):
        context = open_run(case.config("ours"), None, time.perf_counter, RunLog())
        run, _ = context.__enter__()
    try:
        yield Ours(case, run, torch.get_num_threads())
    finally:
        context.__exit__(*sys.exc_info())
