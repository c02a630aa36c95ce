"""Reinforcement learning in simulation: collect → advantages → update → log → checkpoint.

Configuration and maybe a checkpoint to resume → a run's folder of better policies. One update reads
top to bottom in `_update`; `collect` computes the advantages, since they belong to the rollout.
Every few updates the policy is evaluated on scenes that it never learns from, and saved. All
processes do the same, each with its own environments; the first one writes.

A resumed run equals one that was never stopped, bit for bit on a CPU: actions and minibatches are
sampled from generators that the seed and the number of the update alone decide, and whenever a
checkpoint is written, the running episodes restart, with or without a stop. (A run that gets
SIGTERM or SIGHUP saves where another one would not, so there the episodes differ.)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from crane_x7_vla_rl.training import session
from crane_x7_vla_rl.training.checkpoints.resume import Resumption
from crane_x7_vla_rl.training.checkpoints.training_state import Progress
from crane_x7_vla_rl.training.errors import ConfigError
from crane_x7_vla_rl.training.interrupt import Interrupt
from crane_x7_vla_rl.training.rl import evaluation
from crane_x7_vla_rl.training.rl.config import RlConfig
from crane_x7_vla_rl.training.rl.episode_stats import Sums
from crane_x7_vla_rl.training.rl.figures import RlFigures, UpdateMetrics
from crane_x7_vla_rl.training.rl.kl_control import next_coefficient
from crane_x7_vla_rl.training.rl.rescue import Rescue, named
from crane_x7_vla_rl.training.rl.rollout import Collected, collect
from crane_x7_vla_rl.training.rl.run import BEST, FINAL, NAMES, RlRun, open_run
from crane_x7_vla_rl.training.rl.run_state import RunState
from crane_x7_vla_rl.training.rl.update import UpdateIndex, update
from crane_x7_vla_rl.training.session import Clock

logger = logging.getLogger(__name__)


def train(
    config: RlConfig, resumption: Resumption | None = None, clock: Clock = time.perf_counter
) -> None:
    """Train to the end, or until SIGTERM, and save.

    Raises TrainingError, SimError and PolicyLoadError, each of which says what to do.
    """
    session.train(config, NAMES, partial(open_run, config, resumption, clock), _loop)


def _loop(run: RlRun, progress: Progress, interrupt: Interrupt) -> None:
    _check_length(run)
    _Loop(run, RunState.of(run, progress), interrupt).to_end()


def _check_length(run: RlRun) -> None:
    """Refuse rollouts in which grpo would see only short episodes; warn if ppo would."""
    longest, save_every = run.rollout.longest, run.config.output.save_every
    if run.config.ppo.algorithm == "grpo" and run.rollout.steps < longest:
        raise ConfigError(
            f"training.rollout_steps is {run.rollout.steps}, but an episode may take {longest}"
            " decisions, and grpo learns only from whole episodes: set --rollout-steps to"
            f" {longest} or more"
        )
    if run.session.is_first and save_every * run.rollout.steps < longest:
        logger.warning(
            "episodes restart at each checkpoint, which is after %d decisions, but may take %d:"
            " no episode reaches its time limit, so failures are seen too seldom; raise"
            " --save-every to %d", save_every * run.rollout.steps, longest,
            -(-longest // run.rollout.steps),
        )  # fmt: skip


class _Loop:
    """A run from where it is to its end."""

    def __init__(self, run: RlRun, state: RunState, interrupt: Interrupt) -> None:
        self.run, self.state, self.interrupt = run, state, interrupt
        self.rescue = Rescue(run, state)
        self.began_s = run.clock()

    def to_end(self) -> None:
        """Update until the end, of updates or time, or until a signal requests a stop; save."""
        end = self.run.config.training.num_updates
        self.interrupt.training = True
        stopped = self._agree(self._wants_to_stop())
        while self.state.progress.step < end and not stopped:
            stopped = not self._update() or self._agree(self._wants_to_stop())
        step = self.state.progress.step
        interrupted = self._agree(self.interrupt.wanted) and step < end
        if not interrupted:
            self.rescue.save(FINAL)
        elif not self.rescue.is_saved:
            self.rescue.save(named(step))
        logger.info("%s after %d of %d updates", "stopped" if interrupted else "done", step, end)

    def _wants_to_stop(self) -> bool:
        """Whether this process wants to end."""
        limit = self.run.config.training.time_limit_minutes
        late = limit is not None and self.run.clock() - self.began_s > 60 * limit
        return self.interrupt.wanted or late

    def _agree(self, mine: bool) -> bool:
        """Whether any process wants something; every one must call it."""
        return self.run.agent.largest(float(mine)) > 0

    def _update(self) -> bool:
        """Make one update; return whether it was completed."""
        run, state, number = self.run, self.state, self.state.progress.step
        rate = self._rate()
        if run.config.ppo.algorithm == "grpo" and number:
            state.scenes.begin_next(run.config.env.same_scene)
        run.agent.widen(run.config.ppo.action_std_at(self._share()))
        started_s = run.clock()
        with self.rescue.rollout():
            found = collect(run.rollout, number, lambda: self.interrupt.wanted, run.clock)
        if self._agree(found is None) or found is None:
            return False
        sums = Sums.of(run.agent, found, state.scenes.add(found, run.rollout.steps))
        learning_s = run.clock()
        with self.rescue.learning(), _threads(run.threads):
            index = UpdateIndex(number, run.config.training.seed, rate)
            ppo = replace(run.config.ppo, kl_coefficient=state.kl_coefficient)
            metrics = update(run.agent, found.buffer, ppo, index)
        ended_s = run.clock()
        state.advance(sums.env_steps)
        state.weigh_starts(run, found)
        figures = _figures(state.progress, sums, metrics, found) | {
            "learning_rate": run.config.ppo.learning_rate * rate,
            "recent_success": state.recent.add(sums.counted, sums.counted_successes),
            "learn_s": ended_s - learning_s,
            "update_s": ended_s - started_s,
            "env_steps_s": sums.env_steps / (ended_s - started_s),
            "kl_coefficient": state.kl_coefficient,
        }
        if metrics.minibatches and number >= run.config.ppo.value.warmup:  # the policy moved
            state.kl_coefficient = next_coefficient(
                state.kl_coefficient, metrics.ref_kl, run.config.ppo.ref_kl_target
            )
        is_best = self._evaluate(figures)
        self._log(figures)
        self._checkpoint(is_best)
        return True

    def _rate(self) -> float:
        """Return the share of both learning rates that the update under way gets."""
        training = self.run.config.training
        return 1 - self.state.progress.step / training.num_updates if training.anneal else 1.0

    def _share(self) -> float:
        """Return how much of the run is done, 0 in its first update and 1 in its last."""
        return self.state.progress.step / max(1, self.run.config.training.num_updates - 1)

    def _evaluate(self, figures: dict[str, Any]) -> bool:
        """Evaluate on unseen scenes where it is time to, add it to `figures`; return if it is best.

        Each process rolls out its share of the episodes.
        """
        run, step = self.run, self.state.progress.step
        every = run.config.evaluation.every
        if not every or step % every:
            return False
        with self.rescue.evaluation(), run.agent.acting() as runner:
            success = evaluation.success(run, runner, step)
        figures["evaluation_success"] = success
        is_best = success > self.state.best
        self.state.best = max(success, self.state.best)
        return is_best

    def _log(self, figures: dict[str, Any]) -> None:
        self.run.session.tracker.log(RlFigures(**figures))
        names = ("env_steps", "success", "recent_success", "evaluation_success")
        self.state.about = {name: figures.get(name) for name in names}

    def _checkpoint(self, is_best: bool) -> None:
        """Save where it is time to; the running episodes then restart, as in a resumed run."""
        config, step = self.run.config, self.state.progress.step
        self.state.scenes.note()
        is_due = step % config.output.save_every == 0
        hung_up = self._agree(self.interrupt.take_hangup())
        if not (is_due or is_best or hung_up):
            return
        self.state.scenes.restart()
        if is_best:
            self.rescue.save(BEST)
        if (is_due or hung_up) and step < config.training.num_updates:
            self.rescue.save(named(step))
        if hung_up:
            self.run.session.tell_of_hangup()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let matrix products on a CPU use this many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _figures(
    progress: Progress, sums: Sums, metrics: UpdateMetrics, found: Collected
) -> dict[str, Any]:
    """Return what of `RlFigures` the rollout and the update say."""
    return asdict(metrics) | {
        "step": progress.step,
        "env_steps": progress.samples,
        "episodes": sums.episodes,
        "success": sums.mean(sums.successes),
        "episode_return": sums.mean(sums.rewards),
        "episode_steps": sums.mean(sums.episode_steps),
        "discarded": sums.discarded,
        "middle_success": sums.middle_share,
        "simulate_s": found.simulate_s,
        "infer_s": found.infer_s,
    }
