"""Where a run resumes, and what may change then: for fine-tuning and reinforcement learning.

A checkpoint's configuration and the current layers → the current configuration and the changes.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from crane_x7_vla_rl.fields import quoted
from crane_x7_vla_rl.training.checkpoints import run_folder, save
from crane_x7_vla_rl.training.checkpoints.save import CONFIG
from crane_x7_vla_rl.training.config import loader
from crane_x7_vla_rl.training.config.loader import Layer
from crane_x7_vla_rl.training.errors import ResumeError

logger = logging.getLogger(__name__)

T = TypeVar("T")
AUTO: Final = "auto"


@dataclass(frozen=True)
class Resumption:
    """How a run resumes."""

    folder: Path
    """A complete checkpoint."""
    changes: tuple[str, ...]
    """Changed settings, one line each."""


@dataclass(frozen=True)
class Rules:
    """Which keys may change."""

    fixed: tuple[str, ...]
    """Keys that may not change, since they decide what is in a checkpoint."""
    free: tuple[str, ...]
    """Prefixes of keys that do not affect learning; their changes are not listed."""
    decided: str
    """What the fixed keys decide, in words."""


def locate(path: Path) -> Path:
    """Return the complete checkpoint at `path`, or the newest next to it, and log which.

    Raises ResumeError if there is no complete one.
    """
    try:
        return save.locate(path)
    except ResumeError as error:
        other = save.newest(path.expanduser().absolute().parent)
        if other is None:
            raise
        logger.warning("%s; resuming from that one", error)
        return other


def add_argument(parser: argparse.ArgumentParser, checkpoints: str) -> None:
    """Add `--resume`; `checkpoints` are the names that a trainer gives them."""
    parser.add_argument(
        "--resume", metavar="FOLDER|auto",
        help=f"resume {checkpoints}, or a run's newest checkpoint, with its configuration; flags"
        " override it. auto: resume this run if it has a complete checkpoint, else start it",
    )  # fmt: skip


def folder(wanted: str | None, run: Callable[[], Path]) -> Path | None:
    """Return the checkpoint that `--resume` names; None: start. `run` returns the run's folder.

    Raises ResumeError where a folder is given that has none, ConfigError as `run` does.
    """
    if wanted is None:
        return None
    if wanted != AUTO:
        return locate(Path(wanted))
    found = run_folder.newest(run())
    return None if found is None else found.resolve()


def configure(
    cls: type[T], wanted: Sequence[Layer], folder: Path, place: Mapping[str, str], rules: Rules
) -> tuple[T, Resumption]:
    """Return the configuration of a run that resumes from `folder`, and what that changes.

    Precedence: the checkpoint's values < `place`, the run's present folder by dotted key, <
    `wanted`. Raises ConfigError, and ResumeError for what cannot change.
    """
    before = loader.read_file(folder / CONFIG)
    old = loader.build(cls, [before])
    new = loader.build(cls, [before, Layer(str(folder), place), *wanted])
    changed = {
        key: f"{key}: {quoted(was)} → {quoted(now)}"
        for key, (was, now) in loader.differences(old, new).items()
        if not key.startswith(rules.free)
    }
    fixed = [text for key, text in changed.items() if key in rules.fixed]
    if fixed:
        raise ResumeError(
            f"{folder} was saved with {rules.decided}; these cannot change within a run:"
            f" {'; '.join(fixed)}. Keep the old values, or start a new run"
        )
    return new, Resumption(folder, tuple(changed.values()))
