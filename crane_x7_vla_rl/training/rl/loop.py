"""Reinforcement learning in simulation: rollouts in, a run's folder of better policies out.

One update reads top to bottom in `_update`: roll out → learn → log. Every few updates the policy is
evaluated on scenes that it never learns from, and saved. All processes do the same, each with its
own environments; the first one writes.

A resumed run equals one that was never stopped, bit for bit on a CPU: actions and minibatches are
drawn from generators that seed and number of the update alone decide, and whenever a checkpoint is
written, the episodes that are running begin anew, with or without a stop. (A run stopped by SIGTERM
saves where another one would not, so there the episodes differ.)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import torch
from accelerate.utils import broadcast_object_list, gather_object

from crane_x7_vla_rl.log_text import MANY_LINES
from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.training import non_finite as spoilt
from crane_x7_vla_rl.training import out_of_memory as memory
from crane_x7_vla_rl.training.checkpoints import policy_files, training_state
from crane_x7_vla_rl.training.checkpoints import save as checkpoint
from crane_x7_vla_rl.training.checkpoints.lineage import Lineage
from crane_x7_vla_rl.training.checkpoints.publish import artifact_in
from crane_x7_vla_rl.training.checkpoints.resume import Resumption
from crane_x7_vla_rl.training.checkpoints.training_state import Progress
from crane_x7_vla_rl.training.config import loader as config_tree
from crane_x7_vla_rl.training.errors import (
    ConfigError,
    NotFiniteError,
    OutOfMemoryError,
    SpoiltError,
)
from crane_x7_vla_rl.training.interrupt import Interrupt
from crane_x7_vla_rl.training.rl import agent as agents
from crane_x7_vla_rl.training.rl import evaluation as rl_evaluation
from crane_x7_vla_rl.training.rl import figures as rl_tracking
from crane_x7_vla_rl.training.rl import value_head as value
from crane_x7_vla_rl.training.rl.config import RlConfig
from crane_x7_vla_rl.training.rl.episode_stats import Outcomes, Recent, Sums
from crane_x7_vla_rl.training.rl.figures import RlFigures
from crane_x7_vla_rl.training.rl.rollout import Clock, collect
from crane_x7_vla_rl.training.rl.run import NEVER, RlRun, open_run
from crane_x7_vla_rl.training.rl.update import UpdateIndex, UpdateMetrics, update
from crane_x7_vla_rl.training.sft.loop import FINISH_S, INTERRUPTED_S, UNDONE

logger = logging.getLogger(__name__)

PREFIX: Final = "checkpoint_"
BEST: Final = "checkpoint_best"
FINAL: Final = "checkpoint_final"


def train(
    config: RlConfig, resumption: Resumption | None = None, clock: Clock = time.perf_counter
) -> None:
    """Train to the end, or until SIGTERM, and save.

    Raises TrainingError, SimError and PolicyLoadError, each of which says what to do.
    """
    with Interrupt() as interrupt, open_run(config, resumption, clock) as (run, progress):
        _check_length(run)
        _Loop(run, progress, interrupt).to_end()
        interrupt.training = False  # all is saved: whoever asks again need not wait
        deadline_s = INTERRUPTED_S if interrupt.wanted else FINISH_S
        undone = run.uploads.finish(deadline_s) + run.tracker.finish(deadline_s)
    if undone:
        (run.folder / UNDONE).write_text("\n".join(undone) + "\n")
        where, text = run.folder / UNDONE, "\n".join(undone)
        logger.warning("not uploaded (listed in %s):\n%s", where, text, extra=MANY_LINES)


def _longest(run: RlRun) -> int:
    """Return how many decisions an episode may take."""
    world = run.config.env.world(round(1 / run.rollout.codec.inputs.period_s))
    return -(-world.max_steps // run.rollout.codec.inputs.chunk_steps)


def _check_length(run: RlRun) -> None:
    """Refuse rollouts in which grpo would see short episodes alone; warn where ppo would."""
    longest, save_every = _longest(run), run.config.output.save_every
    if run.config.ppo.algorithm == "grpo" and run.rollout.steps < longest:
        raise ConfigError(
            f"training.rollout_steps is {run.rollout.steps}, but an episode may take {longest}"
            " decisions, and grpo learns from whole episodes alone: give --rollout-steps"
            f" {longest} or more"
        )
    if run.is_first and save_every * run.rollout.steps < longest:
        logger.warning(
            "episodes begin anew at each checkpoint, which is after %d decisions, but may take %d:"
            " none will run into its time limit, so what fails is seen too seldom; raise"
            " --save-every to %d", save_every * run.rollout.steps, longest,
            -(-longest // run.rollout.steps),
        )  # fmt: skip


class _Loop:
    """A run from where it is to its end."""

    def __init__(self, run: RlRun, progress: Progress, interrupt: Interrupt) -> None:
        self.run, self.progress, self.interrupt = run, progress, interrupt
        before = progress.position or {}
        self.best = float(before.get("best", NEVER))
        self.recent = Recent(before.get("recent", ()))
        self.outcomes = Outcomes(_longest(run), run.rollout.codec.inputs.chunk_steps)
        self.known: dict[str, Any] = {}
        """What is known of the newest update's policy, for its checkpoint."""
        self.saved = progress.step if progress.position is not None else -1
        self.began_s = run.clock()
        self.rewind: Callable[[], None] | None = no_need
        """Takes back what the update under way has moved; None where it cannot be taken back."""
        self.scenes = run.env.state_dict()
        """Which episodes were running when the update that is not done yet began."""

    def to_end(self) -> None:
        """Update until the end, of updates or time, or until somebody asks to stop; save."""
        end = self.run.config.training.num_updates
        self.interrupt.training = True
        stopped = self._agree(self._wanted())
        while self.progress.step < end and not stopped:
            stopped = not self._update() or self._agree(self._wanted())
        interrupted = self._agree(self.interrupt.wanted) and self.progress.step < end
        if not interrupted:
            self._save(FINAL)
        elif self.saved < self.progress.step:
            self._save(named(self.progress.step))
        word = "stopped" if interrupted else "done"
        logger.info("%s after %d of %d updates", word, self.progress.step, end)

    def _wanted(self) -> bool:
        """Whether this process wants to end."""
        limit = self.run.config.training.time_limit_minutes
        late = limit is not None and self.run.clock() - self.began_s > 60 * limit
        return self.interrupt.wanted or late

    def _agree(self, mine: bool) -> bool:
        """Whether any process wants something; every one must call it."""
        return self.run.agent.largest(float(mine)) > 0

    def _update(self) -> bool:
        """Make one update; return whether it came to its end."""
        run, number, rate = self.run, self.progress.step, self._rate()
        if run.config.ppo.algorithm == "grpo" and number:
            self._begin_all()
        started_s = run.clock()
        lower = f"--num-parallel-envs, now {run.config.env.num_parallel_envs}"
        with self._rescue("rollout", lower, together=False):
            found = collect(run.rollout, number, lambda: self.interrupt.wanted, run.clock)
        if self._agree(found is None) or found is None:
            return False
        counted = self.outcomes.add(found.episodes, found.ended, run.rollout.steps)
        sums = Sums.of(run.agent, found, counted)
        learning_s = run.clock()
        lower = f"--micro-batch-size, now {run.config.ppo.micro_batch_size}"
        self.rewind = run.agent.snapshot() if run.config.lora.enabled else None
        with self._rescue("learning", lower, together=True):
            index = UpdateIndex(number, run.config.training.seed, rate)
            with _threads(run.threads):
                metrics = update(run.agent, found.buffer, run.config.ppo, index)
        self.rewind = no_need
        ended_s = run.clock()
        self.progress = replace(
            self.progress,
            step=number + 1,
            samples=self.progress.samples + sums.env_steps,
        )
        figures = _figures(self.progress, sums, metrics) | {
            "learning_rate": run.config.ppo.learning_rate * rate,
            "recent_success": self.recent.add(sums.counted, sums.counted_successes),
            "simulate_s": found.simulate_s,
            "infer_s": found.infer_s,
            "learn_s": ended_s - learning_s,
            "update_s": ended_s - started_s,
            "env_steps_s": sums.env_steps / (ended_s - started_s),
        }
        self._between(figures)
        return True

    def _rate(self) -> float:
        """Return the share of both learning rates that the update under way gets."""
        training = self.run.config.training
        return 1 - self.progress.step / training.num_updates if training.anneal else 1.0

    def _between(self, figures: dict[str, Any]) -> None:
        """Evaluate, save and log after an update, where it is time to."""
        config, step = self.run.config, self.progress.step
        every, is_better = config.evaluation.every, False
        if every and step % every == 0:
            lower = f"--env-processes, now {config.env.processes or 'one per core'}"
            with self._rescue("evaluation", lower, together=False):
                success = self._evaluate()
            figures["evaluation_success"] = success
            is_better = success > self.best
            self.best = max(success, self.best)
        self.run.tracker.log(RlFigures(**figures))
        names = ("env_steps", "success", "recent_success", "evaluation_success")
        self.known = {name: figures.get(name) for name in names}
        self.scenes = self.run.env.state_dict()
        due = step % config.output.save_every == 0
        if not (due or is_better):
            return
        self._restart()
        if is_better:
            self._save(BEST)
        if due and step < config.training.num_updates:
            self._save(named(step))

    def _restart(self) -> None:
        """Begin the running episodes anew, as a run does that goes on from what is saved now."""
        env = self.run.env
        env.load_state_dict(env.state_dict())
        self.outcomes.restart()
        self.scenes = env.state_dict()

    def _begin_all(self) -> None:
        """Begin the next episode in every environment: grpo learns from whole ones alone."""
        state = self.run.env.state_dict()
        self.run.env.load_state_dict(
            state | {"episodes": [episode + 1 for episode in state["episodes"]]}
        )
        self.outcomes.restart()
        self.scenes = self.run.env.state_dict()

    def _evaluate(self) -> float:
        """Return the rate of success on unseen scenes; the first process rolls out for all."""
        run = self.run
        with run.agent.acting() as runner:
            found = [
                rl_evaluation.success(run, runner, self.progress.step) if run.is_first else None
            ]
        (success,) = broadcast_object_list(found)
        return float(success or 0.0)

    def _save(self, name: str) -> None:
        """Save a checkpoint; every process takes part, the first one writes.

        Raises SpoiltError where weights are no numbers.
        """
        run = self.run
        if name == FINAL or name == named(self.progress.step):
            self.saved = self.progress.step
        tensors, head = run.agent.tensors()
        optimizer = run.agent.optimizer_state()
        randoms = gather_object([training_state.random_state()])
        scenes = gather_object([self.scenes])
        if run.is_first:
            learned = tensors | {f"{agents.VALUE}{key}": tensor for key, tensor in head.items()}
            spoilt.check_saved(learned, run.folder / name, "ppo.learning_rate")
            wandb_run = run.tracker.wandb_run
            known = replace(
                self.progress,
                position={
                    "environments": scenes,
                    "best": self.best,
                    "recent": self.recent.state(),
                },
                wandb_run=wandb_run.id if wandb_run else self.progress.wandb_run,
            )
            target = run.folder / name
            targets = run.at_end if name == FINAL else run.every_save

            def write(folder: Path) -> None:
                _write_policy(run, folder, target, tensors)
                if head:
                    value.write(folder, head)
                (folder / checkpoint.CONFIG).write_text(config_tree.to_yaml(run.config))
                training_state.write(folder, known, optimizer, randoms)
                origin = Lineage(
                    run.config.start.model, run.made_from, artifact_in(targets, name), known.step,
                    {"base": run.base.name or str(run.base.folder), **self.known},
                )  # fmt: skip
                origin.write(folder)

            checkpoint.save(run.folder, name, self.progress.step, write)
            run.uploads.offer(target, targets)
            pending, apart = run.uploads.pending(), (BEST, FINAL)
            checkpoint.prune(run.folder, run.config.output.keep, pending, apart)
            rl_tracking.plot(run.folder)
            logger.info("saved %s", target)
        run.accelerator.wait_for_everyone()

    @contextmanager
    def _rescue(self, what: str, lower: str, together: bool) -> Iterator[None]:
        """Save what has been learned so far before an error ends the run, and name it.

        `together`: all processes meet the same error, so that they can save.
        """
        where = f"update {self.progress.step + 1}, {what}"
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not memory.ran_out(error):
                raise
            saved = self._save_late(together=False)
            raise OutOfMemoryError(
                f"{where}: memory ran out ({memory.need(error)}); lower {lower}, and go on with"
                f" --resume {saved}"
            ) from error
        except (NotFiniteError, SimError) as error:
            good = not isinstance(error, SpoiltError)
            saved = self._save_late(together) if good else checkpoint.newest(self.run.folder)
            raise type(error)(f"{error} (go on with --resume {saved})") from error

    def _save_late(self, together: bool) -> Path | None:
        """Save the weights of the last whole update, unless they are; return the newest checkpoint.

        An update that breaks off may have moved weights already: they go back first. All the
        weights of a model are too many to be copied before each update: without adapters, nothing
        is saved then.
        """
        run = self.run
        if self.rewind is None:
            return checkpoint.newest(run.folder)
        self.rewind()
        run.agent.forget()
        if self.saved < self.progress.step and (together or run.accelerator.num_processes == 1):
            self._save(named(self.progress.step))
        return checkpoint.newest(run.folder)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let products on a CPU use so many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def no_need() -> None:
    """Take nothing back: nothing has been moved."""


def named(step: int) -> str:
    """Return the name of the checkpoint after `step` updates."""
    return f"{PREFIX}{step}"


def _write_policy(run: RlRun, folder: Path, target: Path, tensors: dict[str, Any]) -> None:
    if run.config.lora.enabled:
        policy_files.write_adapter(folder, target, tensors, run.config.lora, run.base)
    else:
        raw = run.loaded.raw_config
        policy_files.write_weights(folder, tensors, raw, run.loaded.model.norm_stats)
    policy_files.write_assets(folder, run.around)


def _figures(progress: Progress, sums: Sums, metrics: UpdateMetrics) -> dict[str, Any]:
    """Return what of `RlFigures` is known without a clock."""
    learned = asdict(metrics)
    learned["minibatches"] = learned.pop("steps")
    return learned | {
        "step": progress.step,
        "env_steps": progress.samples,
        "episodes": sums.episodes,
        "success": sums.mean(sums.successes),
        "episode_return": sums.mean(sums.rewards),
        "episode_steps": sums.mean(sums.episode_steps),
        "discarded": sums.discarded,
    }
