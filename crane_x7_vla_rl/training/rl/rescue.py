"""Saves a run of reinforcement learning, also before an error ends it.

A run and its state → checkpoints. An error in the middle of an update → the weights of the last
whole update, saved where they can be, and the same error with how to resume.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch

from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.training import out_of_memory
from crane_x7_vla_rl.training.checkpoints import save as checkpoint
from crane_x7_vla_rl.training.errors import NotFiniteError, OutOfMemoryError, SpoiltError
from crane_x7_vla_rl.training.rl import figures
from crane_x7_vla_rl.training.rl.run import FINAL, RlRun
from crane_x7_vla_rl.training.rl.run_state import RunState

PREFIX: Final = "checkpoint_"


def named(step: int) -> str:
    """Return the name of the checkpoint after `step` updates."""
    return f"{PREFIX}{step}"


class Rescue:
    """Saves a run's state when the loop calls it, and before an error ends the run."""

    def __init__(self, run: RlRun, state: RunState) -> None:
        self._run, self._state = run, state
        self._saved = state.progress.step if state.progress.position is not None else -1
        """Updates that the newest numbered or final checkpoint has seen."""

    @property
    def is_saved(self) -> bool:
        """Whether a checkpoint of the last whole update has been written."""
        return self._saved >= self._state.progress.step

    def save(self, name: str) -> None:
        """Save a checkpoint; see `Session.save`."""
        if name in (FINAL, named(self._state.progress.step)):
            self._saved = self._state.progress.step
        self._run.session.save(name, self._state.snapshot(self._run))
        if self._run.session.is_first:
            figures.plot(self._run.folder)

    @contextmanager
    def rollout(self) -> Iterator[None]:
        """Save what was learned before an error of a rollout ends the run."""
        lower = f"--num-parallel-envs, now {self._run.config.env.num_parallel_envs}"
        with self._saving("rollout", lower):
            yield

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Save what was learned before an error of an evaluation ends the run."""
        lower = f"--env-processes, now {self._run.config.env.processes or 'one per core'}"
        with self._saving("evaluation", lower):
            yield

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Undo an update that fails, then save the state before it.

        A model's weights are too large to be copied before each update: where they learn, nothing
        is saved then.
        """
        run = self._run
        is_small = run.config.lora.enabled or run.config.training.head_only
        rewind = run.agent.snapshot() if is_small else None
        lower = f"--micro-batch-size, now {run.config.ppo.micro_batch_size}"
        with self._saving("learning", lower, together=True, is_intact=rewind is not None):
            try:
                yield
            except (MemoryError, RuntimeError, NotFiniteError):
                if rewind is not None:
                    rewind()
                raise

    @contextmanager
    def _saving(
        self, what: str, lower: str, together: bool = False, is_intact: bool = True
    ) -> Iterator[None]:
        """Save before an error ends the run, and name it.

        `lower` is the flag to lower where memory ran out. `together`: all processes meet the same
        error, so that they can save. `is_intact`: the weights are those of the last whole update.
        """
        where = f"update {self._state.progress.step + 1}, {what}"
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory.ran_out(error):
                raise
            saved = self._save_late(is_intact, together=False)
            raise OutOfMemoryError(
                f"{where}: out of memory ({out_of_memory.need(error)}); lower {lower}, and"
                f" resume with --resume {saved}"
            ) from error
        except (NotFiniteError, SimError) as error:
            is_good = is_intact and not isinstance(error, SpoiltError)
            saved = self._save_late(is_good, together)
            raise type(error)(f"{error} (resume with --resume {saved})") from error

    def _save_late(self, is_good: bool, together: bool) -> Path | None:
        """Save the last whole update where it can be; return the newest checkpoint."""
        if is_good:
            self._run.agent.forget()
            alone = self._run.session.accelerator.num_processes == 1
            if not self.is_saved and (together or alone):
                self.save(named(self._state.progress.step))
        return checkpoint.newest(self._run.folder)
