"""The metadata of a LeRobotDataset v3. Folder → `Published`: counts, tasks, seeds and statistics.

Only the episodes that `meta/info.json` counts. Further files come from a writer that was killed
while publishing; the next writer overwrites them with the same group.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.data.files import find_files, read_json
from crane_x7_vla_rl.data.lerobot import layout
from crane_x7_vla_rl.data.lerobot.stats import NAMES, Stats, combine
from crane_x7_vla_rl.fields import quoted

STATS_PREFIX: Final = "stats/"
"""Prefix of the columns with an episode's statistics."""


@dataclass(frozen=True)
class Published:
    """The episodes that a data set counts."""

    episodes: int = 0
    frames: int = 0
    groups: int = 0
    """Number of the next group of files."""
    tasks: tuple[str, ...] = ()
    """Instructions; a task's index is its place."""
    seeds: frozenset[int] = frozenset()
    stats: Stats = field(default_factory=dict)


def read_rows(
    folder: Path, info: Mapping[str, Any], *, stats: bool = False
) -> list[dict[str, Any]]:
    """Return the rows of the episodes that `info` counts, in order; raises DataError for gaps.

    Without `stats`, each episode's statistics are skipped: they are most of a row, and only a
    writer needs them.
    """
    rows: dict[int, dict[str, Any]] = {}
    total = int(info["total_episodes"])
    for path in find_files(folder / "meta" / "episodes", "*/*.parquet"):
        table = layout.read_table(path)
        if not stats:
            table = table.select(
                [name for name in table.column_names if not name.startswith(STATS_PREFIX)]
            )
        for row in table.to_pylist():
            if row["episode_index"] < total:
                rows[row["episode_index"]] = row
    missing = [number for number in range(total) if number not in rows]
    if missing:
        raise DataError(
            f"{folder}/meta/episodes: no row for episode {missing[0]}"
            f" ({len(missing)} of {total} missing); copy the data set again"
        )
    return [rows[number] for number in range(total)]


def read_tasks(folder: Path) -> tuple[str, ...]:
    """Return the instructions in the order of their index."""
    table = layout.read_table(folder / layout.TASKS).to_pydict()
    texts = next((values for name, values in table.items() if name != "task_index"), None)
    indices = table.get("task_index")
    if texts is None or indices is None or sorted(indices) != list(range(len(indices))):
        raise DataError(
            f"{folder / layout.TASKS}: has the columns {', '.join(table)}, expected one of texts"
            " and task_index from 0"
        )
    return tuple(text for _, text in sorted(zip(indices, texts, strict=True)))


def read_published(folder: Path, features: Mapping[str, Any], fps: float) -> Published:
    """Return the data set in the folder, empty if new; raises DataError if it cannot grow."""
    if not (folder / layout.INFO).exists():
        return Published()
    info = read_json(folder / layout.INFO)
    for name, expected in (("codebase_version", layout.VERSION), ("fps", fps)):
        if info.get(name) != expected:
            raise DataError(
                f"{folder}: {name} is {quoted(info.get(name))}, expected {quoted(expected)} as in"
                " the new episodes; use another folder"
            )
    if info.get("features") != features:
        raise DataError(
            f"{folder}: its features differ from those of the new episodes; use another folder"
            f" ({_difference(info, features)})"
        )
    rows = read_rows(folder, info, stats=True)
    numbers = [
        row["meta/episodes/chunk_index"] * layout.FILES_PER_CHUNK + row["meta/episodes/file_index"]
        for row in rows
    ]
    return Published(
        len(rows),
        int(info["total_frames"]),
        max(numbers, default=-1) + 1,
        read_tasks(folder),
        frozenset(row["seed"] for row in rows if row["seed"] is not None),
        combine(_row_stats(row) for row in rows),
    )


def counted(folder: Path) -> int:
    """Return the number of episodes in the data set, 0 for a new one."""
    path = folder / layout.INFO
    return int(read_json(path)["total_episodes"]) if path.exists() else 0


def tasks_table(tasks: Sequence[str]) -> pa.Table:
    """Return tasks.parquet: the instruction is the index that pandas restores."""
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64",
             "numpy_type": "int64", "metadata": None},
            {"name": "task", "field_name": "task", "pandas_type": "unicode",
             "numpy_type": "object", "metadata": None},
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }  # fmt: skip
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": list(tasks)})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def rows_table(
    rows: Sequence[Mapping[str, Any]], stats: Sequence[Stats], extras: layout.Extras
) -> pa.Table:
    """Return the episode rows with each episode's statistics as columns `stats/feature/name`."""
    columns = {
        name: pa.array([row[name] for row in rows], kind) for name, kind in extras.episode_fields
    }
    for feature in stats[0]:
        for name in NAMES:
            values = [one[feature][name].tolist() for one in stats]
            columns[f"{STATS_PREFIX}{feature}/{name}"] = pa.array(values)
    return pa.table(columns)


def _row_stats(row: Mapping[str, Any]) -> Stats:
    stats: Stats = {}
    for column, value in row.items():
        if column.startswith(STATS_PREFIX):
            _, feature, name = column.split("/")
            stats.setdefault(feature, {})[name] = np.array(value)
    return stats


def _difference(info: Mapping[str, Any], features: Mapping[str, Any]) -> str:
    theirs = info.get("features") or {}
    names = [name for name in {**theirs, **features} if theirs.get(name) != features.get(name)]
    return "; ".join(f"{name}: {theirs.get(name)}, new {features.get(name)}" for name in names[:1])
