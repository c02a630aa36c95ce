"""What both trainers share: open a run's folder, resume, save checkpoints, upload, finish.

Configuration and maybe a checkpoint → a `Session`; a `Snapshot` → a checkpoint in its folder. All
processes of a run go through the same calls, the first one writes.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from crane_x7_vla_rl.file_errors import why
from crane_x7_vla_rl.log_text import MANY_LINES
from crane_x7_vla_rl.policies.openvla.weights.loading import Loaded
from crane_x7_vla_rl.training import learner, non_finite
from crane_x7_vla_rl.training.checkpoints import (
    lineage,
    policy_files,
    publish,
    run_folder,
    training_state,
)
from crane_x7_vla_rl.training.checkpoints import save as checkpoint
from crane_x7_vla_rl.training.checkpoints.lineage import Lineage
from crane_x7_vla_rl.training.checkpoints.policy_files import Base, PolicyAssets
from crane_x7_vla_rl.training.checkpoints.publish import Uploads, UploadTargets
from crane_x7_vla_rl.training.checkpoints.resume import Resumption
from crane_x7_vla_rl.training.checkpoints.training_state import Progress
from crane_x7_vla_rl.training.config import loader
from crane_x7_vla_rl.training.config.run_config import RunConfig
from crane_x7_vla_rl.training.errors import OutputError
from crane_x7_vla_rl.training.interrupt import Interrupt
from crane_x7_vla_rl.training.learner import Learner
from crane_x7_vla_rl.training.run_log import RunLog
from crane_x7_vla_rl.training.tracking import Tracker

logger = logging.getLogger(__name__)

UNDONE: Final = "not-uploaded.txt"
FINISH_S: Final = 1800.0
"""The end of a run waits this long for uploads, at least for one more try of each."""
INTERRUPTED_S: Final = 8.0
"""The same after SIGTERM: spot machines stop 30 s later."""
FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class TrainerNames:
    """What a trainer calls its flags and checkpoints."""

    command: str
    resume_flag: str
    learning_rate: str
    """The setting to lower where weights become NaN."""
    final: str
    """The checkpoint at the end of a run."""
    apart: tuple[str, ...] = ()
    """Checkpoints that stay regardless of output.keep."""


@dataclass(frozen=True)
class Origin:
    """The policy that a run started from, and what its checkpoints copy from it."""

    model: str
    """Folder or Hub id, as configured."""
    made_from: str | None
    """Its artifact at W&B, where it has one."""
    base: Base
    loaded: Loaded
    assets: PolicyAssets


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A run between two updates, as a checkpoint holds it."""

    progress: Progress
    policy: Mapping[str, Tensor]
    """Adapters or all weights, by name."""
    optimizer: Mapping[str, Any]
    about: Mapping[str, Any]
    """What `lineage.json` contains in addition to the base."""
    others: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Other weights by file, such as a value head's."""


@dataclass(frozen=True, eq=False)
class Session:
    """A run's folder, tracker and uploads."""

    config: RunConfig
    names: TrainerNames
    accelerator: Accelerator
    origin: Origin
    tracker: Tracker
    uploads: Uploads
    targets: UploadTargets

    @property
    def folder(self) -> Path:
        """Where results go."""
        return self.config.output_dir

    @property
    def is_first(self) -> bool:
        """Whether this process writes."""
        return bool(self.accelerator.is_main_process)

    def save(self, name: str, snapshot: Snapshot) -> None:
        """Save a checkpoint; every process takes part, the first one writes.

        Raises SpoiltError where weights are NaN or infinite, OutputError where the disk is full.
        """
        randoms = gather_object([training_state.random_state()])
        if self.is_first:
            self._write(name, snapshot, randoms)
        self.accelerator.wait_for_everyone()

    def tell_of_hangup(self) -> None:
        """Log where to follow a training whose terminal may be gone."""
        if self.is_first:
            logger.info(
                "SIGHUP: saved; the training continues without its terminal. Follow it with"
                " crane-x7-vla-rl %s --follow %s; stop it with kill %d",
                self.names.command, self.folder, os.getpid(),
            )  # fmt: skip

    def _write(self, name: str, snapshot: Snapshot, randoms: list[dict[str, Tensor]]) -> None:
        target, progress = self.folder / name, snapshot.progress
        learned = dict(snapshot.policy)
        for file, tensors in snapshot.others.items():
            learned |= {f"{Path(file).stem}.{key}": tensor for key, tensor in tensors.items()}
        non_finite.check_saved(learned, target, self.names.learning_rate)
        if self.tracker.wandb_run is not None:
            progress = replace(progress, wandb_run=self.tracker.wandb_run.id)
        destinations = self.targets.at(name == self.names.final)
        base = self.origin.base
        origin = Lineage(
            self.origin.model, self.origin.made_from, publish.artifact_in(destinations, name),
            progress.step, {"base": base.name or str(base.folder), **snapshot.about},
        )  # fmt: skip

        def write(folder: Path) -> None:
            self._write_policy(folder, target, snapshot.policy)
            for file, tensors in snapshot.others.items():
                policy_files.write_tensors(folder / file, tensors)
            (folder / checkpoint.CONFIG).write_text(loader.to_yaml(self.config))
            training_state.write(folder, progress, snapshot.optimizer, randoms)
            origin.write(folder)

        checkpoint.save(self.folder, name, progress.step, write)
        self.uploads.offer(target, destinations)
        pending = self.uploads.pending()
        checkpoint.prune(self.folder, self.config.output.keep, pending, self.names.apart)
        logger.info("saved %s", target)

    def _write_policy(self, folder: Path, target: Path, tensors: Mapping[str, Tensor]) -> None:
        loaded, lora = self.origin.loaded, self.config.lora
        if lora.enabled:
            policy_files.write_adapter(folder, target, tensors, lora, self.origin.base)
        else:
            statistics = loaded.model.norm_stats
            policy_files.write_weights(folder, tensors, loaded.raw_config, statistics)
        policy_files.write_assets(folder, self.origin.assets)

    def finish(self, interrupted: bool) -> None:
        """Wait for uploads; list in UNDONE what could not be uploaded."""
        deadline_s = INTERRUPTED_S if interrupted else FINISH_S
        undone = self.uploads.finish(deadline_s) + self.tracker.finish(deadline_s)
        if undone:
            where, text = self.folder / UNDONE, "\n".join(undone)
            where.write_text(text + "\n")
            logger.warning("not uploaded (listed in %s):\n%s", where, text, extra=MANY_LINES)


def train(
    config: RunConfig, names: TrainerNames,
    open_run: Callable[[RunLog], AbstractContextManager[tuple[Any, Progress]]],
    loop: Callable[[Any, Progress, Interrupt], None],
) -> None:  # fmt: skip
    """Open a run, let `loop` train to the end or until SIGTERM and save, then finish uploads.

    `open_run` yields an SftRun or RlRun, whose `session` is a Session. Raises OutputError where the
    disk is full.
    """
    checked = _disk_checked(config, names)
    with RunLog() as log, checked, Interrupt() as interrupt, open_run(log) as (run, progress):
        loop(run, progress, interrupt)
        interrupt.training = False  # everything is saved: a second signal ends the process
        run.session.finish(interrupt.wanted)


@contextmanager
def _disk_checked(config: RunConfig, names: TrainerNames) -> Iterator[None]:
    """Return the error for a full disk, with what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        folder = config.output_dir
        raise OutputError(
            f"{folder}: cannot be written: {why(error)} ({checkpoint.free_gb(folder)}); the last"
            f" complete checkpoint is {checkpoint.newest(folder) or 'none'}; free some space, then"
            f" resume with {names.resume_flag}"
        ) from error


@dataclass(frozen=True, eq=False)
class Start:
    """A run whose model, data and scenes are not open yet; nothing is written."""

    config: RunConfig
    names: TrainerNames
    resumption: Resumption | None
    accelerator: Accelerator
    log: RunLog

    @property
    def resumed(self) -> Path | None:
        """The checkpoint that the run resumes from."""
        return self.resumption.folder if self.resumption else None

    @property
    def resumes_here(self) -> bool:
        """Whether it resumes a checkpoint in the run's own folder."""
        resumed = self.resumed
        return resumed is not None and resumed.parent == self.config.output_dir.resolve()

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the run's folder and write configuration and log there; raises OutputError.

        The configuration is logged here: a start that was refused needs none.
        """
        if not self.accelerator.is_main_process:
            yield
            return
        folder, text = self.config.output_dir, loader.to_yaml(self.config)
        with run_folder.claimed(folder, self.resumes_here):
            run_folder.write_config(folder, text)
            self.log.open(folder / run_folder.LOG)
            logger.info("configuration:\n%s", text.rstrip(), extra=MANY_LINES)
            logger.info(
                "log: %s (process %d); follow it elsewhere: crane-x7-vla-rl %s --follow %s",
                folder / run_folder.LOG, os.getpid(), self.names.command, folder,
            )  # fmt: skip
            yield


def begin(
    config: RunConfig, resumption: Resumption | None, names: TrainerNames, log: RunLog
) -> Start:
    """Join the run's processes and check the run's folder.

    Raises OutputError where the folder holds another run, or cannot be written.
    """
    accelerator = learner.start_processes(config.training.device)
    if not accelerator.is_main_process:
        logging.getLogger().setLevel(logging.WARNING)
    if resumption is not None:
        logger.info("resuming from %s", resumption.folder)
        for change in resumption.changes:
            logger.warning("changed since the checkpoint: %s", change)
    start = Start(config, names, resumption, accelerator, log)
    if accelerator.is_main_process:
        run_folder.check(config.output_dir, start.resumes_here)
    return start


def restore(learning: Learner, resumed: Path | None) -> Progress:
    """Set optimizer and random states to those of the checkpoint; return how far the run is."""
    processes = int(learning.accelerator.num_processes)
    if resumed is None:
        return Progress(processes=processes)
    progress = training_state.read_progress(resumed)
    optimizer, randoms = training_state.read_tensors(resumed)
    learning.restore_optimizer(optimizer)
    if progress.processes == processes:
        training_state.set_random_state(randoms[learning.accelerator.process_index])
    else:
        torch.manual_seed(torch.initial_seed() + progress.samples)
        logger.warning(
            "changed since the checkpoint: processes: %d → %d; dropout masks will differ",
            progress.processes, processes,
        )  # fmt: skip
    return replace(progress, processes=processes)


@contextmanager
def open_session(
    start: Start, origin: Origin, open_tracker: Callable[[], Tracker]
) -> Iterator[Session]:
    """Claim the folder of a run whose parts are all open, and yield its session.

    Closes its tracker afterwards. Raises OutputError.
    """
    is_first = bool(start.accelerator.is_main_process)
    with ExitStack() as stack:
        stack.enter_context(start.claimed())
        tracker = stack.enter_context(open_tracker() if is_first else Tracker())
        targets = UploadTargets()
        if is_first:
            targets = publish.upload_targets(start.config, tracker.wandb_run)
        uploads = Uploads(targets.at_end)
        yield Session(
            start.config, start.names, start.accelerator, origin, tracker, uploads, targets
        )


def origin(
    model: str, weights: str, loaded: Loaded, assets: PolicyAssets, resumed: Path | None
) -> Origin:
    """Return where a run starts: the configured `model`, whose whole weights are `weights`."""
    made_from = lineage.made_from(model, resumed)
    return Origin(model, made_from, Base.of(weights, loaded.layout), loaded, assets)
