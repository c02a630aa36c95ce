"""The older LeRobot format v2.1 (and v2.0): files of metadata → the rows and tasks of v3.

One file of frames and one video for each episode; `meta/episodes.jsonl`, `meta/tasks.jsonl`, and
statistics in `meta/episodes_stats.jsonl` (v2.0: `meta/stats.json`). openpi's trainer reads v2.1.
Source: lerobot 0.6.1, `scripts/convert_dataset_v21_to_v30.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.fields import quoted
from crane_x7_vla_rl.file_errors import why

VERSION: Final = "v2.1"
VERSIONS: Final = (VERSION, "v2.0")
EPISODES: Final = "meta/episodes.jsonl"
EPISODES_STATS: Final = "meta/episodes_stats.jsonl"
TASKS: Final = "meta/tasks.jsonl"
CHUNK_EPISODES: Final = 1000
"""Default of `chunks_size`: episodes of one folder `chunk-…`."""


def is_v21(info: Mapping[str, Any]) -> bool:
    """Whether info.json describes this format."""
    return info.get("codebase_version") in VERSIONS


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file; raises DataError naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read ({why(error)}); copy the data set again"
        ) from error
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}: line {number} is no JSON: {error}") from error
        if not isinstance(value, dict):
            raise DataError(f"{path}: line {number} is {quoted(value)}, expected an object")
        found.append(value)
    return found


def read_rows(folder: Path, info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each episode that `info` counts, with the columns of v3."""
    path, total = folder / EPISODES, int(info["total_episodes"])
    by_index = {line.get("episode_index"): line for line in read_lines(path)}
    missing = [number for number in range(total) if number not in by_index]
    if missing:
        raise DataError(
            f"{path}: no line for episode {missing[0]} ({len(missing)} of {total} missing); copy"
            " the data set again"
        )
    size = info.get("chunks_size", CHUNK_EPISODES)
    if type(size) is not int or size < 1:
        raise DataError(
            f"{folder}/meta/info.json: chunks_size is {quoted(size)}, expected a number"
        )
    cameras = [name for name, about in info["features"].items() if about["dtype"] == "video"]
    rows, begun = [], 0
    for number in range(total):
        row = by_index[number]
        length = row.get("length")
        if type(length) is not int or length < 1 or not isinstance(row.get("tasks"), list):
            raise DataError(
                f"{path}: episode {number} is {quoted(row)}, expected tasks and a length of 1 or"
                " more"
            )
        place = {"chunk_index": number // size, "file_index": number}
        kinds = ("data", *(f"videos/{name}" for name in cameras))
        rows.append(
            {
                **row,
                "dataset_from_index": begun,
                **{f"{kind}/{key}": value for kind in kinds for key, value in place.items()},
                **{f"videos/{name}/from_timestamp": 0.0 for name in cameras},
            }
        )
        begun += length
    return rows


def read_tasks(folder: Path) -> tuple[str, ...]:
    """Return the instructions in the order of their index."""
    lines = read_lines(folder / TASKS)
    try:
        found = {int(line["task_index"]): str(line["task"]) for line in lines}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / TASKS}: expected task_index and task in each line") from error
    return tuple(text for _, text in sorted(found.items()))
