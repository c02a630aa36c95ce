"""Atomic checkpoints. A function that fills a folder → that folder, complete, or nothing.

It is written under a temporary name, synced, then renamed.

A run's folder holds `checkpoint-<step>` and `checkpoint-final` (`checkpoint_<update>` and so on in
reinforcement learning), each with a marker `complete.json` that lists its files and their sizes,
and `last`, a symlink to the one saved last, since a run may resume from an older one. The function
that writes a checkpoint decides its content; this module knows no model. A process may be killed at
any time: its leftovers have names that begin with a dot, and the next start removes them.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl import old_names
from crane_x7_vla_rl.file_errors import why
from crane_x7_vla_rl.training.errors import OutputError, ResumeError

logger = logging.getLogger(__name__)

PREFIX: Final = "checkpoint-"
PREFIXES: Final = (PREFIX, "checkpoint_")
"""Fine-tuning's names, and reinforcement learning's."""
FINAL: Final = "checkpoint-final"
LAST: Final = "last"
MARKER: Final = "complete.json"
CONFIG: Final = "train_config.yaml"
STATE: Final = "training_state"
"""Folder that only the trainer reads: optimizer, random states, data position."""
ASIDE: Final = ".tmp-"
"""Prefix of a folder that is not complete yet."""
TRASH: Final = ".trash-"
"""Prefix of a folder that is being removed."""
AT_FDCWD: Final = -100
RENAME_EXCHANGE: Final = 2
"""renameat2(2), Linux: swap two names in one step."""


def named(step: int) -> str:
    """Return the name of the checkpoint after `step` updates."""
    return f"{PREFIX}{step}"


def save(run: Path, name: str, step: int, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a folder, rename it to `run/name`, and let `last` point to it.

    Afterwards everything is on the disk. A checkpoint of that name is replaced in one step. Raises
    OutputError if it cannot be written; complete checkpoints stay.
    """
    target = run / name
    try:
        write_whole(target, {"step": step, "serial": _next_serial(run)}, write)
        _point_last(run, target)
    except OSError as error:
        raise _unsaved(target, error) from error
    return target


def write_whole(target: Path, about: Mapping[str, int], write: Callable[[Path], None]) -> Path:
    """Let `write` fill a folder and rename it with its marker, whole or not at all.

    `about` (step, serial) goes into the marker. Raises OutputError where it cannot be written.
    """
    aside = target.with_name(ASIDE + target.name)
    from safetensors import SafetensorError  # an image without it still reads configurations

    try:
        _remove(aside)
        aside.mkdir(parents=True)
        write(aside)
        _mark(aside, about)
        _put(aside, target)
    except (OSError, RuntimeError, SafetensorError) as error:
        # A full disk is an OSError here, a RuntimeError in torch, a SafetensorError in Rust.
        shutil.rmtree(aside, ignore_errors=True)
        raise _unsaved(target, error) from error
    return target


def _unsaved(target: Path, error: Exception) -> OutputError:
    last = newest(target.parent)
    return OutputError(
        f"{target}: cannot be saved: {why(error)} ({free_gb(target.parent)}); the last complete"
        f" checkpoint is {last or 'none'}; if the disk is full, free some space, then resume"
        " from that checkpoint"
    )


def free_gb(folder: Path) -> str:
    """Return the free space on the disk of `folder`, as text."""
    try:
        return f"{shutil.disk_usage(folder).free / 1e9:.2f} GB are free on this disk"
    except OSError as error:
        return f"cannot read free disk space: {error.strerror}"


def _next_serial(run: Path) -> int:
    return max((_serial(path) for path in complete(run)), default=0) + 1


def _serial(folder: Path) -> int:
    """Return how many checkpoints the run had saved with this one."""
    return int(read_marker(folder)["serial"])


def _mark(folder: Path, about: Mapping[str, int]) -> None:
    """Sync every file, then write and sync the marker that lists them."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = path.stat().st_size
        _sync(path)
    marker = folder / MARKER
    marker.write_text(json.dumps({**about, "files": files}, indent=2) + "\n")
    _sync(marker)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put(aside: Path, target: Path) -> None:
    """Rename `aside` to `target`; the old one gets the other name and is removed."""
    if target.exists():
        _swap(aside, target)
        _remove(aside)
    else:
        aside.rename(target)
    _sync(target.parent)


def _swap(one: Path, other: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
        return
    # Not every file system can swap; between these renames `other` is missing for a moment.
    third = one.with_name(one.name + "-old")
    _remove(third)
    other.rename(third)
    one.rename(other)
    third.rename(one)


def _point_last(run: Path, target: Path) -> None:
    """Let `last` point to `target`, in one step; a relative link, so that the run can be moved."""
    link = run / f"{ASIDE}{LAST}"
    link.unlink(missing_ok=True)
    link.symlink_to(target.name)
    link.replace(run / LAST)
    _sync(run)


def _remove(folder: Path) -> None:
    """Remove a folder, which first loses a name that could be taken for a checkpoint's."""
    if folder.exists():
        trash = folder.with_name(TRASH + folder.name)
        if trash.exists():
            shutil.rmtree(trash)
        shutil.rmtree(folder.rename(trash))


def clean(run: Path) -> None:
    """Remove leftovers of a killed process, and let `last` point to the newest checkpoint again."""
    for path in run.glob(f"{TRASH}*"):
        shutil.rmtree(path)
    for path in run.glob(f"{ASIDE}*"):
        if path.is_symlink():
            path.unlink()
        else:
            _restore_or_remove(path)
    last = newest(run)
    if last is not None and (run / LAST).resolve() != last.resolve():
        _point_last(run, last)


def _restore_or_remove(path: Path) -> None:
    """Rename a complete checkpoint back if the process was killed between two renames."""
    name = path.name.removeprefix(ASIDE).removesuffix("-old")
    if problem(path) is None and name.startswith(PREFIXES) and not (path.parent / name).exists():
        logger.warning("%s was complete, but not renamed yet; renamed now", path.parent / name)
        path.rename(path.parent / name)
    else:
        _remove(path)


def problem(folder: Path) -> str | None:
    """Return why `folder` is not a complete checkpoint; None if it is."""
    if folder.is_file():
        return "it is a file; expected a folder"
    marker = folder / MARKER
    try:
        files = read_marker(folder)["files"]
    except FileNotFoundError:
        return f"{marker} is missing"
    except (OSError, ValueError) as error:
        return f"{marker} cannot be read: {why(error)}"
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size} bytes, expected {size}"
    return None


def read_marker(folder: Path) -> dict[str, Any]:
    """Return step, serial and files from the marker; raises OSError or ValueError."""
    found = json.loads((folder / MARKER).read_text())
    kinds = {"step": int, "serial": int, "files": dict}
    if not isinstance(found, dict) or any(
        not isinstance(found.get(name), kind) for name, kind in kinds.items()
    ):
        raise ValueError(f"expected {', '.join(kinds)}")
    return found


def step_of(folder: Path) -> int:
    """Return after how many updates a complete checkpoint was saved."""
    return int(read_marker(folder)["step"])


def complete(run: Path) -> list[Path]:
    """Return the run's complete checkpoints, the one saved last at the end."""
    return sorted(
        (path for path in run.glob("checkpoint[-_]*") if problem(path) is None), key=_serial
    )


def newest(run: Path) -> Path | None:
    """Return the complete checkpoint that the run saved last."""
    found = complete(run)
    return found[-1] if found else None


def locate(path: Path) -> Path:
    """Return the complete checkpoint at `path`: itself, `last`, or a run's newest.

    Raises ResumeError with the problem and the checkpoint to use instead.
    """
    folder = path.expanduser().absolute()
    if (folder / MARKER).is_file():
        folder = folder.resolve()  # `last` may point elsewhere by the next save
    elif not folder.name.startswith(PREFIXES) and (last := newest(folder)) is not None:
        return last
    wrong = problem(folder)
    if wrong is None:
        return folder
    other = newest(folder.parent)
    hint = f"the newest complete one is {other}" if other else "no complete one is next to it"
    hint += old_names.value_hint(("--resume",), str(path))
    raise ResumeError(f"{path} is not a complete checkpoint: {wrong}; {hint}")


def prune(
    run: Path, keep: int | None, spared: Collection[Path] = (), apart: Collection[str] = ()
) -> list[Path]:
    """Remove all but the `keep` newest checkpoints and those `spared`; return what was removed.

    Those named in `apart` stay, and do not count.
    """
    counted = [path for path in complete(run) if path.name not in apart]
    old = [] if keep is None else counted[:-keep]
    gone = [path for path in old if path not in spared]
    for path in gone:
        _remove(path)
    return gone
