"""LeRobot's checkpoints on disk. A run's folder → its newest complete checkpoint.

LeRobot writes `checkpoints/<step>/` file by file, and sets the link `checkpoints/last` afterwards.
A kill may leave a folder with some of the files, a link to nothing, or none. So this module reads
what is there: every file of a save, each JSON whole, each safetensors as long as its header says.
The marker `complete.json`, which our save writes last, holds every file's size.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl.policies import lerobot_folder
from crane_x7_vla_rl.training.errors import ResumeError

logger = logging.getLogger(__name__)

CHECKPOINTS: Final = "checkpoints"
LAST: Final = "last"
MARKER: Final = "complete.json"
SAVING: Final = ".saving-"
"""Prefix of a checkpoint while our save writes it."""
MODEL: Final = "pretrained_model"
STATE: Final = "training_state"
CONFIG: Final = f"{MODEL}/train_config.json"
STEP: Final = f"{STATE}/training_step.json"
NEEDED: Final = (
    CONFIG, STEP, f"{STATE}/rng_state.safetensors", f"{STATE}/optimizer_state.safetensors",
    f"{STATE}/optimizer_param_groups.json",
)  # fmt: skip
"""Beside the policy's own files; what LeRobot 0.6.1 reads to resume."""
SCHEDULER: Final = f"{STATE}/scheduler_state.json"
"""Also needed if the run has a scheduler."""


@dataclass(frozen=True, order=True)
class Saved:
    """A complete checkpoint."""

    step: int
    folder: Path

    @property
    def model(self) -> Path:
        """The policy's files, and train_config.json."""
        return self.folder / MODEL


def problem(folder: Path) -> str | None:
    """Return why a checkpoint is incomplete; None if it is complete."""
    try:
        return next(_problems(folder), None)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"


def _problems(folder: Path) -> Iterator[str]:
    for name in NEEDED:
        if not (folder / name).is_file():
            yield f"{name} is missing"
    yield from lerobot_folder.missing(folder / MODEL)
    for path in sorted(folder.rglob("*.json")):
        try:
            json.loads(path.read_bytes())
        except ValueError:
            yield f"{path.relative_to(folder)} is not JSON ({path.stat().st_size} bytes)"
    for path in sorted(folder.rglob("*.safetensors")):
        if path.stat().st_size == 0 or _spoilt(path):
            yield f"{path.relative_to(folder)}: {_spoilt(path) or 'is empty'}"
    if read(folder / CONFIG).get("scheduler") and not (folder / SCHEDULER).is_file():
        yield f"{SCHEDULER} is missing"
    for name in _processor_files(folder / MODEL):
        if not (folder / MODEL / name).is_file():
            yield f"{MODEL}/{name} is missing"
    for name, size in read(folder / MARKER).get("files", {}).items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            yield f"{name} is missing or not {size} bytes long, as {MARKER} says"


def _spoilt(path: Path) -> str | None:
    """Return why a safetensors file is damaged; one without tensors, as an optimizer's may be, is
    fine."""
    found = lerobot_folder.weights_problem(path)
    return None if found is not None and found.endswith("holds no weights") else found


def _processor_files(model: Path) -> Iterator[str]:
    """Yield the state files that the pre- and post-processor name."""
    for name in lerobot_folder.PROCESSORS:
        for step in read(model / name).get("steps") or ():
            if isinstance(step, dict) and step.get("state_file"):
                yield str(step["state_file"])


def read(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; {} if it is missing, broken or something else."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints' folders, the most advanced first, complete or not."""
    found = [
        path for path in (run / CHECKPOINTS).glob("*") if path.name.isdecimal() and path.is_dir()
    ]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def newest(run: Path) -> Saved | None:
    """Return the most advanced complete checkpoint of a run, and log those that are not."""
    for folder in checkpoints(run):
        if (why := problem(folder)) is None:
            return Saved(int(read(folder / STEP).get("step", folder.name)), folder)
        logger.warning("%s is incomplete: %s; an older one is used", folder, why)
    return None


def find(path: Path) -> Saved:
    """Return the complete checkpoint that a user's path means, or the newest of its run.

    `path` is a run, its `checkpoints`, one of them, `last`, or a `pretrained_model` or
    train_config.json in it. Raises ResumeError if there is no complete one.
    """
    path = path.expanduser()
    if path.name == Path(CONFIG).name:
        path = path.parent
    if path.name == MODEL:
        path = path.parent
    place = path.parent.resolve() / path.name
    if place.is_symlink() and not place.exists():
        logger.warning("%s points nowhere (%s)", place, os.readlink(place))
    elif place.name != CHECKPOINTS and (place / MODEL).is_dir():
        folder = place.resolve()
        if (why := problem(folder)) is None:
            return Saved(int(read(folder / STEP)["step"]), folder)
        logger.warning("%s is incomplete: %s", folder, why)
    inside = [each for each in (place, *place.parents[:2]) if (each / CHECKPOINTS).is_dir()]
    found = newest(inside[0]) if inside else None
    if found is None:
        raise ResumeError(
            f"{path}: no complete checkpoint of LeRobot; give a run's folder, or one of its"
            f" {CHECKPOINTS}/<step>. without --resume a new training starts"
        )
    return found


def prepare(saved: Saved) -> None:
    """Make the run ready to resume from a checkpoint: later, incomplete ones are removed.

    `last` becomes a link to it: LeRobot fails at its next save where `last` is a folder.
    """
    place = saved.folder.parent
    for path in place.glob(f"{SAVING}*"):
        shutil.rmtree(path)
    for path in checkpoints(place.parent):
        if path != saved.folder and int(path.name) > saved.step:
            logger.warning("%s is incomplete and is removed", path)
            shutil.rmtree(path)
    link(saved.folder)


def link(folder: Path) -> None:
    """Let `checkpoints/last` point to this checkpoint; it is never missing meanwhile."""
    last = folder.parent / LAST
    if last.is_dir() and not last.is_symlink():
        aside = last.with_name(f"{LAST}-was-a-folder")
        logger.warning("%s is a folder, LeRobot needs a link; it is now %s", last, aside.name)
        if aside.exists():
            shutil.rmtree(aside)
        last.rename(aside)
    new = last.with_name(f".{LAST}")
    new.unlink(missing_ok=True)
    new.symlink_to(folder.name)
    new.replace(last)
