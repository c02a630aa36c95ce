"""Files of data sets: found without side files, JSON read, and written whole or not at all.

A folder and patterns → sorted paths; content → a temporary file, synced and renamed to its path.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.file_errors import kind_in_words, why

logger = logging.getLogger(__name__)

PARTIAL: Final = ".partial"
"""Suffix of files that are still being written."""


def find_files(folder: Path, *patterns: str) -> list[Path]:
    """Return the paths in `folder` that match a glob pattern, sorted.

    Names that begin with a dot, of files or of folders below `folder`, are skipped and counted in
    the log: macOS writes `._name` next to every `name` on foreign disks.
    """
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    hidden = {path for path in found if is_hidden(path, folder)}
    if hidden:
        logger.warning(
            "%s: %d files skipped whose names begin with a dot, such as %s",
            folder, len(hidden), min(hidden).relative_to(folder),
        )  # fmt: skip
    return sorted(found - hidden)


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether the file's name, or that of a folder between it and `folder`, begins with a dot."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a temporary file, then rename it to `path`; the file is never incomplete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    try:
        write(partial)
        sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the JSON file at `path`."""
    text = json.dumps(content, indent=4, ensure_ascii=False) + "\n"

    def write(partial: Path) -> None:
        partial.write_text(text, encoding="utf-8")

    write_whole(path, write)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raises DataError that names the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {why(error)}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds {kind_in_words(content)}, expected an object")
    return content


def sync(path: Path) -> None:
    """Wait until the file, or the folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
