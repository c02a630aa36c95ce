"""One training by LeRobot, from the first check to the last upload. A plan → checkpoints.

The run's folder holds what LeRobot writes (`checkpoints/`), its whole output in `train.log`, and
`metrics.jsonl` with the figures of its lines of progress. Complete checkpoints are uploaded in the
background meanwhile.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl.training.checkpoints import run_folder
from crane_x7_vla_rl.training.checkpoints.publish import Uploads
from crane_x7_vla_rl.training.checkpoints.run_folder import LOG
from crane_x7_vla_rl.training.errors import OutputError
from crane_x7_vla_rl.training.interrupt import Interrupt
from crane_x7_vla_rl.training.lerobot import output, saved
from crane_x7_vla_rl.training.lerobot.output import Progress
from crane_x7_vla_rl.training.lerobot.saved import Saved
from crane_x7_vla_rl.training.lerobot.trainer import Trainer
from crane_x7_vla_rl.training.lerobot.upload import Destination
from crane_x7_vla_rl.training.run_log import RunLog

logger = logging.getLogger(__name__)

METRICS: Final = "metrics.jsonl"
OURS: Final = (LOG, METRICS, "not-uploaded.txt")
"""What this program writes into a run's folder beside LeRobot's files."""
TAIL: Final = 300
"""Last lines of LeRobot that explain a failure."""
LOOK_S: Final = 2.0
"""How often the folder is searched for a new checkpoint."""
UPLOAD_S: Final = 1800.0
"""How long uploads may take after the training."""
TOLD: Final = (
    "cfg.steps=", "dataset.num_frames=", "dataset.num_episodes=", "num_learnable_params=",
    "Effective batch size", "Resuming data order", "Track this run",
)  # fmt: skip
"""Beginnings of LeRobot's lines that the terminal shows, beside progress and warnings."""


@dataclass(frozen=True)
class Call:
    """How the trainer is started."""

    command: list[str]
    environment: Mapping[str, str]
    output_dir: Path
    steps: int
    """At the end of the run."""
    log_steps: int
    """Steps between lines of progress."""
    resumed: Saved | None = None
    uploaded: bool = False
    """Whether `resumed` came from where checkpoints are uploaded to."""
    shown: str = ""
    """The command as one would type it."""


def check_folder(run: Path, resuming: bool) -> None:
    """Raise OutputError where a training cannot start, or resume, in this folder.

    LeRobot refuses a folder that exists, so what an interrupted start left is removed.
    """
    run_folder.check(run, True)
    if resuming or not run.exists():
        return
    if not run.is_dir():
        raise OutputError(f"{run} is a file; choose another job.output_dir (--output-dir)")
    found = {path.name for path in run.iterdir()}
    if saved.checkpoints(run):
        raise OutputError(
            f"{run} holds a run; a run never overwrites another: resume it with --resume auto, or"
            " choose another job.output_dir (--output-dir)"
        )
    if others := found - {*OURS, saved.CHECKPOINTS}:
        raise OutputError(
            f"{run} holds {', '.join(sorted(others)[:5])}, which no training by LeRobot wrote;"
            " choose another job.output_dir (--output-dir)"
        )
    for name in found & {*OURS}:
        (run / name).unlink()
    for path in (run / saved.CHECKPOINTS,) if saved.CHECKPOINTS in found else ():
        for left in path.iterdir():
            if not left.name.startswith((saved.SAVING, f".{saved.LAST}", saved.LAST)):
                raise OutputError(f"{left} was not written by a training; move it away")
        _remove(path)
    run.rmdir()


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder)


@dataclass
class _Watch:
    """What is known of a running training."""

    call: Call
    uploads: Uploads
    destination: Destination | None
    began_s: float = field(default_factory=time.monotonic)
    lines: int = 0
    """Lines of progress so far."""
    first_s: float | None = None
    """When the first of them came."""
    looked_s: float = 0.0
    offered: set[int] = field(default_factory=set)
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL))

    @property
    def begun(self) -> int:
        """Steps that were done before."""
        return 0 if self.call.resumed is None else self.call.resumed.step

    def step(self) -> int:
        """Return the step of the present line of progress: LeRobot rounds it."""
        each = self.call.log_steps
        return min((self.begun // each + self.lines) * each, self.call.steps)


def train(
    call: Call,
    destination: Destination | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Saved | None:
    """Run the trainer to its end; return the newest complete checkpoint.

    SIGTERM and Ctrl-C let LeRobot save and stop. Raises TrainingError, DataError and
    PolicyLoadError for the cause of a failure.
    """
    with RunLog() as log, Interrupt() as interrupt:
        uploads = Uploads([destination.target] if destination else [], clock)
        watch = _Watch(call, uploads, destination)
        if call.resumed is not None:
            if call.uploaded or destination is None or not destination.every_save:
                watch.offered.add(call.resumed.step)
            log.open(call.output_dir / LOG)
            _keep_metrics(call.output_dir / METRICS, call.resumed.step)
        log.tell(__name__, call.shown)
        with Trainer(call.command, call.environment) as trainer:
            interrupt.training = True
            for text in trainer.lines():
                if interrupt.wanted and not trainer.asked:
                    logger.info("saving and stopping")
                    trainer.ask()
                _take(text, watch, log, trainer)
            code = trainer.code()
            stopped = trainer.asked
        found = _look(watch, end=True)
        _finish_uploads(watch)
        if code and not stopped:
            raise output.failure(code, list(watch.tail))
        if stopped:
            where = "nothing was saved" if found is None else f"the newest is {found.folder}"
            logger.info("stopped: %s; resume with --resume auto", where)
        elif found is not None:
            logger.info("trained: %s", found.model)
        return found


def _take(text: str, watch: _Watch, log: RunLog, trainer: Trainer) -> None:
    """Handle one line, or "" when there was none for a moment."""
    now_s = time.monotonic()
    if now_s - watch.looked_s > LOOK_S:
        watch.looked_s = now_s
        _look(watch)
    if not text:
        return
    text = output.COLOUR.sub("", text)
    watch.tail.append(text)
    match = output.LINE.search(text)  # LeRobot's progress bar stands before it
    if match is None:
        log.tell("lerobot", text)
        return
    said = match["text"]
    if said.startswith("Output dir:") and watch.call.resumed is None:
        watch.call.output_dir.mkdir(parents=True, exist_ok=True)  # LeRobot has accepted it
        log.open(watch.call.output_dir / LOG)
    if said.startswith("step:"):
        watch.lines += 1
    progress = output.figures(said, watch.step())
    if progress is not None:
        _progress(progress, watch, trainer)
    elif match["level"] in ("WARNING", "ERROR", "CRITICAL"):
        logger.warning("LeRobot: %s", said)
    elif said.startswith(TOLD):
        logger.info("%s", said)
    else:
        log.tell("lerobot", said)


def _progress(progress: Progress, watch: _Watch, trainer: Trainer) -> None:
    now_s = time.monotonic()
    if watch.first_s is None:
        watch.first_s = now_s
    done = (watch.lines - 1) * watch.call.log_steps
    logger.info("%s", output.shown(progress, watch.call.steps, now_s - watch.first_s, done))
    row = {"step": progress.step, **progress.values}
    with (watch.call.output_dir / METRICS).open("a", encoding="utf-8") as file:
        file.write(f"{json.dumps(row)}\n")
    if progress.bad:
        trainer.kill()  # SIGTERM would save damaged weights
        newest = saved.newest(watch.call.output_dir)
        raise output.not_finite(progress, "the start" if newest is None else str(newest.folder))


def _look(watch: _Watch, end: bool = False) -> Saved | None:
    """Offer new complete checkpoints for upload; return the newest one."""
    found = None
    for folder in saved.checkpoints(watch.call.output_dir):
        number = int(folder.name)
        if number in watch.offered and not end:
            break
        if saved.problem(folder) is not None:
            continue
        found = Saved(number, folder)
        break
    if found is None or watch.destination is None:
        return found
    fresh = found.step not in watch.offered
    if (watch.destination.every_save and fresh) or (end and fresh):
        watch.offered.add(found.step)
        watch.uploads.offer(found.folder, [watch.destination.target])
    return found


def _finish_uploads(watch: _Watch) -> None:
    undone = watch.uploads.finish(UPLOAD_S) if watch.destination is not None else []
    if not undone:
        return
    path = watch.call.output_dir / "not-uploaded.txt"
    path.write_text("".join(f"{line}\n" for line in undone), encoding="utf-8")
    logger.warning(
        "not uploaded, see %s; the next --resume auto uploads it: %s", path, "; ".join(undone)
    )


def _keep_metrics(path: Path, step: int) -> None:
    """Drop the figures of steps that are trained again."""
    if not path.exists():
        return
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # a kill tore the last line
    kept = [row for row in rows if row.get("step", 0) <= step]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in kept), encoding="utf-8")
