"""The data set of a training by LeRobot. Folder or Hub id → `dataset.repo_id` and `dataset.root`.

LeRobot data sets of format v3 are read as they are. TFRecord logs, bags and older LeRobot formats
are converted first, into `<run>-data` beside the run; a conversion that was interrupted continues.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl.data import source
from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.data.files import read_json

logger = logging.getLogger(__name__)

INFO: Final = "meta/info.json"
VERSION: Final = "v3."
REPO: Final = "dataset.repo_id"
ROOT: Final = "dataset.root"
LOCAL: Final = "local/"
"""Owner of a data set that is in a folder: LeRobot wants a name for it."""


@dataclass(frozen=True)
class DataSet:
    """What LeRobot is told, and what the data set says about itself."""

    repo_id: str
    root: Path | None
    """None: on the Hub."""
    info: Mapping[str, Any]
    """The content of meta/info.json."""

    @property
    def options(self) -> dict[str, Any]:
        """LeRobot's options."""
        root = {} if self.root is None else {ROOT: str(self.root)}
        return {REPO: self.repo_id, **root}

    @property
    def frames(self) -> int:
        """Frames of all episodes."""
        return int(self.info["total_frames"])


def check(options: Mapping[str, Any]) -> None:
    """Raise DataError if the data set is missing; nothing is converted or fetched."""
    source.find_reader(_place(options))


def prepare(options: Mapping[str, Any], run: Path, instruction: str = "") -> DataSet:
    """Return the data set that the options name, converted if LeRobot cannot read it.

    Raises DataError if it is missing, broken, or cannot be converted.
    """
    place = _place(options)
    folder = Path(place).expanduser()
    revision = options.get("dataset.revision")
    if not folder.exists():
        from crane_x7_vla_rl.data.lerobot.hub import META, fetch_dataset

        named = place if revision is None or "@" in place else f"{place}@{revision}"
        return DataSet(place.partition("@")[0], None, read_json(fetch_dataset(named, META) / INFO))
    module, _ = source.find_reader(folder)
    if module != "lerobot" or not _is_current(folder):
        folder = _converted(folder, run, instruction)
    given = options.get(REPO)
    name = str(given) if given and options.get(ROOT) else f"{LOCAL}{folder.resolve().name}"
    return DataSet(name, folder.resolve(), read_json(folder / INFO))


def _place(options: Mapping[str, Any]) -> str:
    return str(options.get(ROOT) or options.get(REPO))


def _is_current(folder: Path) -> bool:
    return str(read_json(folder / INFO).get("codebase_version")).startswith(VERSION)


def _converted(folder: Path, run: Path, instruction: str) -> Path:
    from crane_x7_vla_rl.data.convert import convert

    target = run.with_name(f"{run.name}-data")
    logger.info("LeRobot cannot read %s as it is; converting it into %s", folder, target)
    count = convert(str(folder), target, instruction, resume=target.exists())
    if count == 0:
        raise DataError(f"{folder}: holds no episode to train on")
    return target
