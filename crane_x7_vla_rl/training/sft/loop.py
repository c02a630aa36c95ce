"""Fine-tuning on demonstrations. Configuration → a run's folder of checkpoints and figures.

One update reads top to bottom in `_update`: samples → loss → gradients → are they finite? →
optimizer. Between updates the run saves, and reacts to SIGTERM and SIGHUP. All processes do the
same; the first one writes. Every random number depends on the seed and the sample's place, or on
a state that checkpoints hold, so that a resumed run continues bit for bit on a CPU.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import torch
from accelerate.utils import gather_object

from crane_x7_vla_rl.data.loader.batches import Batch
from crane_x7_vla_rl.policies.openvla import finite
from crane_x7_vla_rl.training import session
from crane_x7_vla_rl.training.checkpoints import save as checkpoint
from crane_x7_vla_rl.training.checkpoints.resume import Resumption
from crane_x7_vla_rl.training.checkpoints.training_state import Progress
from crane_x7_vla_rl.training.errors import NotFiniteError
from crane_x7_vla_rl.training.interrupt import Interrupt
from crane_x7_vla_rl.training.schedule import learning_rate, smoothing
from crane_x7_vla_rl.training.session import Clock, Snapshot
from crane_x7_vla_rl.training.sft import memory
from crane_x7_vla_rl.training.sft.config import SftConfig
from crane_x7_vla_rl.training.sft.run import NAMES, SftRun, open_run, steps
from crane_x7_vla_rl.training.sft.samples import model_batch
from crane_x7_vla_rl.training.tracking import Figures

logger = logging.getLogger(__name__)

NAMED: Final = 8
"""Most episodes that an error lists."""


@dataclass(frozen=True)
class UpdateOutcome:
    """What all processes agree on after the backward pass of an update."""

    loss: float
    """Mean over all samples: nats per token, or the L1 distance of normalised actions."""
    grad_norm: float
    finite: bool
    stop: bool
    """Whether any process got SIGTERM."""
    hung_up: bool
    """Whether any process got SIGHUP."""


def train(
    config: SftConfig, resumption: Resumption | None = None, clock: Clock = time.perf_counter
) -> None:
    """Train to the end, or until SIGTERM, and save.

    Raises TrainingError, DataError and PolicyLoadError, each of which says what to do.
    """
    session.train(config, NAMES, partial(open_run, config, resumption, clock), _loop)


def _loop(run: SftRun, progress: Progress, interrupt: Interrupt) -> None:
    """Update until the end or a signal to stop; save during the run and at the end."""
    end = steps(run.config, run.samples_per_update, run.batches.frames_per_epoch, progress)
    saved, interrupt.training = progress.step, True
    stop, pause = interrupt.wanted, run.config.training.stop_after or end
    if not progress.step < pause < end:  # the latter also where a stopped run resumes
        pause = end

    def save_late() -> None:
        if saved < progress.step:
            _save(run, progress, checkpoint.named(progress.step))

    while progress.step < pause and not stop:
        with memory.reported(run, progress.step, save_late):
            progress, outcome = _update(run, progress, end, interrupt)
        stop, due = outcome.stop, progress.step % run.config.output.save_steps == 0
        if (due or outcome.hung_up) and progress.step < end:
            _save(run, progress, checkpoint.named(progress.step))
            saved = progress.step
            if outcome.hung_up:
                run.session.tell_of_hangup()
    if progress.step >= end:
        _save(run, progress, checkpoint.FINAL)
    else:
        save_late()
    word = "done" if progress.step >= end else "stopped"
    logger.info("%s after %d of %d updates", word, progress.step, end)


def _update(
    run: SftRun, progress: Progress, end: int, interrupt: Interrupt
) -> tuple[Progress, UpdateOutcome]:
    """Make one update; return the progress after it, and what all processes found."""
    training, started_s = run.config.training, run.clock()
    losses, batches, data_s = [], [], 0.0
    width = smoothing(progress.step, end, training.bin_smoothing)
    for micro in range(training.grad_accumulation_steps):
        asked_s = run.clock()
        batch = next(run.batches)
        sample = model_batch(batch, run.codec, run.learner.like)
        data_s += run.clock() - asked_s
        inputs = run.learner.loss.inputs(sample, width)
        last = micro == training.grad_accumulation_steps - 1
        losses.append(run.learner.backward(inputs, 1 / training.grad_accumulation_steps, last))
        batches.append(batch)
    outcome = _agree(run, torch.stack(losses).mean(), interrupt)
    if not outcome.finite:
        raise _not_finite(run, progress, outcome, batches)
    rate = learning_rate(progress.step, end, training.warmup_ratio, training.learning_rate)
    run.learner.update(rate)
    progress = replace(
        progress,
        step=progress.step + 1,
        samples=progress.samples + run.samples_per_update,
        position=run.batches.state_dict(),
    )
    run.session.tracker.log(
        Figures(
            step=progress.step,
            samples=progress.samples,
            epoch=progress.samples / run.batches.frames_per_epoch,
            loss=outcome.loss,
            grad_norm=outcome.grad_norm,
            learning_rate=rate,
            data_s=data_s,
            update_s=run.clock() - started_s - data_s,
        )
    )
    return progress, outcome


def _agree(run: SftRun, loss: torch.Tensor, interrupt: Interrupt) -> UpdateOutcome:
    """Return what all processes found; each of them returns the same."""
    norm = run.learner.clip()
    wrong = not (math.isfinite(norm) and bool(torch.isfinite(loss)))
    flags = loss.new_tensor([wrong, interrupt.wanted, interrupt.take_hangup()]).float()
    mine = torch.cat([loss.float()[None], flags])
    total = run.accelerator.reduce(mine, reduction="sum").tolist()
    return UpdateOutcome(
        loss=total[0] / run.accelerator.num_processes,
        grad_norm=norm,
        finite=total[1] == 0,
        stop=total[2] > 0,
        hung_up=total[3] > 0,
    )


def _not_finite(
    run: SftRun, progress: Progress, outcome: UpdateOutcome, batches: list[Batch]
) -> NotFiniteError:
    """Return the error that names the update, the episodes of all processes, and what to do."""
    pairs = {
        (int(episode), int(frame))
        for batch in batches
        for episode, frame in zip(batch.episodes, batch.frames, strict=True)
    }
    frames: dict[int, list[int]] = {}
    for episode, frame in sorted(set(gather_object(sorted(pairs)))):
        frames.setdefault(episode, []).append(frame)
    listed = [
        f"episode {episode} (frames {', '.join(map(str, numbers[:NAMED]))})"
        for episode, numbers in list(frames.items())[:NAMED]
    ]
    more = f" and {len(frames) - NAMED} more" if len(frames) > NAMED else ""
    last = checkpoint.newest(run.folder)
    broken = finite.broken(run.learner.model)
    state = f", but already contain NaN: {broken}" if broken else ""
    return NotFiniteError(
        f"update {progress.step + 1}: the loss is {outcome.loss}, its gradient {outcome.grad_norm},"
        f" expected numbers. It was trained on {', '.join(listed)}{more} of {run.source.name}; the"
        f" weights are still those of update {progress.step}{state}. The last good checkpoint is"
        f" {last or 'none'}; lower --learning-rate, or look at these episodes with"
        " `crane-x7-vla-rl validate`"
    )


def _save(run: SftRun, progress: Progress, name: str) -> None:
    """Save a checkpoint; see `Session.save`."""
    (tensors, others), optimizer = run.learner.tensors(progress.step), run.learner.optimizer_state()
    about = {"data": run.source.name}
    run.session.save(name, Snapshot(progress, tensors, optimizer, about, others))
