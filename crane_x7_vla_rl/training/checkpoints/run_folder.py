"""The folder of a run: may a run start or resume there, and does another process train in it?

`check` looks without writing, before anything expensive. `claimed` takes the folder just before the
first update, and holds a lock on its `train.log` until the run ends.

A folder without a complete checkpoint is not a run: an interrupted start left it, and the next
start reuses it. Foreign files stay; if a run would overwrite one, the start is refused.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from crane_x7_vla_rl.training.checkpoints import save
from crane_x7_vla_rl.training.checkpoints.save import ASIDE, CONFIG, LAST, PREFIXES
from crane_x7_vla_rl.training.errors import OutputError
from crane_x7_vla_rl.yaml_file import YamlError, read_yaml

logger = logging.getLogger(__name__)

LOG: Final = "train.log"
BASE: Final = "base"
"""Folder of whole weights in a run that starts from an adapter, which cannot be a base itself."""
FIGURES: Final = (
    "metrics.jsonl", ".metrics.jsonl", "tensorboard", "evaluation", "curves.png",
    "not-uploaded.txt", LAST,
)  # fmt: skip
"""What a run writes beside its configuration, log and checkpoints, and a new start removes."""
SECTIONS: Final = {"training", "lora", "output", "logging", "publish"}
"""A configuration that a run wrote is complete, so it has all of these."""
LOCK_S: Final = 1.0
"""How long a start waits for the lock: a process that checks it holds it for a moment."""
POLL_S: Final = 0.05
NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of file systems without locks."""


def check(run: Path, resuming: bool) -> None:
    """Raise OutputError where a run cannot start, or resume, in this folder; writes nothing."""
    try:
        _check_writable(run)
        if is_held(run):
            raise _in_use(run)
        if not resuming and run.exists():
            _refuse_others(run)
    except OSError as error:
        raise _unusable(run, error) from error


@contextmanager
def claimed(run: Path, resuming: bool) -> Iterator[None]:
    """Claim the folder for this process: for a new run, or a resumed one; leftovers are removed.

    Raises OutputError as `check` does.
    """
    with locked(run):
        try:
            save.clean(run)
            if not resuming:
                _refuse_others(run)
                _remove_leftovers(run)
        except OSError as error:
            raise _unusable(run, error) from error
        yield


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Lock the folder, created if missing; raises OutputError if another process holds it."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run / LOG, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise _unusable(run, error) from error
    try:
        end_s = time.monotonic() + LOCK_S
        while not _lock(descriptor, run):
            if time.monotonic() > end_s:
                raise _in_use(run)
            time.sleep(POLL_S)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, run: Path) -> bool:
    """Return whether this process has the lock, or the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        logger.warning(
            "%s: this file system has no locks (%s); start only one training in this folder",
            run, error.strerror,
        )  # fmt: skip
    return True


def is_held(run: Path) -> bool | None:
    """Return whether a process trains in this folder; None where the file system cannot say."""
    try:
        descriptor = os.open(run / LOG, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None
    finally:
        os.close(descriptor)
    return False


def write_config(run: Path, text: str) -> None:
    """Write the run's configuration; a kill meanwhile leaves the one before, or none."""
    aside = run / f".{CONFIG}"
    try:
        aside.write_text(text)
        aside.replace(run / CONFIG)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def newest(run: Path) -> Path | None:
    """Return the run's newest complete checkpoint, also one that a kill left with another name."""
    if any(run.glob(f"{ASIDE}*")):
        with suppress(OutputError), locked(run):  # in use: its process renames it
            save.clean(run)
    return save.newest(run)


def _check_writable(run: Path) -> None:
    """Raise OSError if files cannot be written in the folder or its nearest existing parent."""
    place = run
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{place} is not a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"{place} is not writable for this user")


def _refuse_others(run: Path) -> None:
    """Raise OutputError where the folder holds a run, or files that a run would overwrite."""
    last = save.newest(run)
    if last is not None:
        raise OutputError(
            f"{run} holds a run, its newest checkpoint is {last.name}; a run never overwrites"
            " another: resume it with --resume auto, or start a new one with another"
            " --experiment-name or --output-dir"
        )
    found = sorted(path.name for path in run.iterdir())
    broken = [name for name in found if name.startswith(PREFIXES)]
    if broken:
        raise OutputError(
            f"{run} holds {', '.join(broken[:5])}, but no complete checkpoint:"
            f" {save.problem(run / broken[0])}; copy the missing file into it, or move the folder"
            " away, or choose another --output-dir"
        )
    others = [name for name in found if name in FIGURES]
    if _is_ours(run / CONFIG):
        others = []
    elif CONFIG in found:
        others.append(CONFIG)
    if BASE in found and save.problem(run / BASE) is not None:
        others.append(BASE)
    if others:
        raise OutputError(
            f"{run} holds {', '.join(others[:5])}, which no run wrote and this run would"
            " overwrite; move them away, or choose another --experiment-name or --output-dir"
        )


def _is_ours(config: Path) -> bool:
    """Whether an interrupted start wrote this configuration; an empty file has nothing to lose."""
    try:
        if not config.stat().st_size:
            return True
        content = read_yaml(config)
    except (OSError, YamlError):
        return False
    return isinstance(content, Mapping) and content.keys() >= SECTIONS


def _remove_leftovers(run: Path) -> None:
    """Remove the files of an interrupted start; its log, its base and runs of W&B stay."""
    for name in FIGURES:
        path = run / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _in_use(run: Path) -> OutputError:
    return OutputError(
        f"{run}: another process trains in this folder; follow it with --follow {run}, or choose"
        " another --experiment-name or --output-dir"
    )


def _unusable(run: Path, error: OSError) -> OutputError:
    return OutputError(f"{run}: cannot be used for output: {error.strerror}")
