"""Files that are there whole or not at all: written beside their place, synced, then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl.data.episode import DataError

PARTIAL: Final = ".partial"
"""Ending of what is still being written."""


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` on a temporary neighbour, then put it in `path`'s place; never half a file."""
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
        raise DataError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds {type(content).__name__}, expected an object")
    return content


def sync(path: Path) -> None:
    """Wait until the file, or the names in the folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
