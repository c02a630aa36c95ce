"""Exact q01, q99, mean, std, min and max of actions and joints. `EpisodeSource` → a JSON file.

`actions.find_statistics` reads `dataset_statistics.json`:
`{"crane_x7": {"action": {…, "mask"}, "proprio": {…}, "num_transitions", "num_trajectories"}}`.
No image is decoded. Data may be larger than memory: rows go to a temporary file (64 bytes per
frame), and quantiles are found by counting, first the upper 16 bits of each value, then, among the
values that share those of the rank, the lower 16. That is exact, unlike a sketch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.data.files import read_json, write_json
from crane_x7_vla_rl.data.source import EpisodeSource
from crane_x7_vla_rl.robot import DOF

Array = npt.NDArray[np.float64]
Keys = npt.NDArray[np.uint32]

FILE_NAME: Final = "dataset_statistics.json"
KEY: Final = "crane_x7"
"""Key of this project's statistics (`unnorm_key`)."""
BLOCK_ROWS: Final = 1 << 16
"""Rows counted at a time: 4 MB."""
HALF: Final = 1 << 16


@dataclass(frozen=True, eq=False)
class Summary:
    """Statistics of one quantity, each (8,) in rad."""

    q01: Array
    q99: Array
    mean: Array
    std: Array
    min: Array
    max: Array


@dataclass(frozen=True, eq=False)
class DataStatistics:
    """Statistics of a whole data set."""

    action: Summary
    proprio: Summary
    """Statistics of the measured joints."""
    num_transitions: int
    num_trajectories: int

    def to_dict(self) -> dict[str, Any]:
        """Return the content of dataset_statistics.json.

        Every joint is scaled, including the gripper: it is an absolute angle like the others, not
        OpenVLA's open or closed.
        """
        kinds = {
            name: {key: value.tolist() for key, value in asdict(summary).items()}
            | {"mask": [True] * DOF}
            for name, summary in (("action", self.action), ("proprio", self.proprio))
        }
        return {
            KEY: {
                **kinds,
                "num_transitions": self.num_transitions,
                "num_trajectories": self.num_trajectories,
            }
        }


def write_statistics(folder: Path, statistics: DataStatistics) -> Path:
    """Write dataset_statistics.json into `folder`, whole; return its path."""
    path = folder / FILE_NAME
    write_json(path, statistics.to_dict())
    return path


def read_statistics(path: Path) -> DataStatistics:
    """Read the file of `write_statistics`; raises DataError for other content."""
    content = read_json(path)
    try:
        entry = content[KEY]
        kinds = [
            Summary(**{field.name: np.array(entry[kind][field.name]) for field in fields(Summary)})
            for kind in ("action", "proprio")
        ]
        counts = int(entry["num_transitions"]), int(entry["num_trajectories"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: has no statistics under {KEY}: {error}") from error
    return DataStatistics(kinds[0], kinds[1], *counts)


def compute_statistics(
    source: EpisodeSource, progress: Callable[[int], None] | None = None
) -> DataStatistics:
    """Return the statistics of all episodes; `progress` is called with each episode's number.

    Raises EpisodeError for a broken episode, DataError without any.
    """
    if not len(source):
        raise DataError(f"{source.name}: holds no episodes; there is nothing to compute")
    with tempfile.TemporaryFile() as spill:
        moments = _Moments()
        for number in range(len(source)):
            episode = source[number]
            rows = np.hstack([episode.state, episode.action])
            spill.write(rows.tobytes())
            moments.add(rows)
            if progress is not None:
                progress(number)
        low, high = _quantiles(spill, moments.count)
    parts = [
        Summary(*(values[place] for values in (low, high, *moments.summary())))
        for place in (slice(DOF, None), slice(0, DOF))
    ]
    return DataStatistics(parts[0], parts[1], moments.count, len(source))


class _Moments:
    """Count, mean, deviation and extremes of (n, 16) rows, block by block."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = np.zeros(2 * DOF)
        self._squares = np.zeros(2 * DOF)
        """Sum of squared distances from the mean."""
        self._min = np.full(2 * DOF, np.inf)
        self._max = np.full(2 * DOF, -np.inf)

    def add(self, rows: npt.NDArray[np.float32]) -> None:
        """Add a block."""
        block = rows.astype(np.float64)
        count = self.count + len(block)
        step = block.mean(axis=0) - self._mean
        self._squares += block.var(axis=0) * len(block)
        self._squares += step**2 * (self.count * len(block) / count)
        self._mean += step * (len(block) / count)
        self._min = np.minimum(self._min, block.min(axis=0))
        self._max = np.maximum(self._max, block.max(axis=0))
        self.count = count

    def summary(self) -> tuple[Array, Array, Array, Array]:
        """Return mean, std, min and max."""
        return self._mean, np.sqrt(self._squares / self.count), self._min, self._max


def _quantiles(spill: IO[bytes], count: int) -> tuple[Array, Array]:
    """Return the 1st and 99th percentile of each column, interpolated between ranks."""
    places = [share * (count - 1) for share in (0.01, 0.99)]
    ranks = [rank for place in places for rank in (int(place), min(int(place) + 1, count - 1))]
    values = _values_at(spill, ranks)  # (4, 16)
    low, high = (
        values[2 * k] + (place - int(place)) * (values[2 * k + 1] - values[2 * k])
        for k, place in enumerate(places)
    )
    return low, high


def _values_at(spill: IO[bytes], ranks: list[int]) -> Array:
    """Return the values (len(ranks), 16) at these ranks of each sorted column."""
    columns = range(2 * DOF)
    coarse = np.zeros((2 * DOF, HALF), np.int64)
    for keys in _blocks(spill):
        for column in columns:
            coarse[column] += np.bincount(keys[:, column] >> 16, minlength=HALF)
    below = np.cumsum(coarse, axis=1)
    upper = np.array([np.searchsorted(below[c], ranks, side="right") for c in columns])  # (16, R)
    fine = {(c, int(top)): np.zeros(HALF, np.int64) for c in columns for top in upper[c]}
    for keys in _blocks(spill):
        for (column, top), counts in fine.items():
            inside = keys[keys[:, column] >> 16 == top, column] & (HALF - 1)
            counts += np.bincount(inside, minlength=HALF)
    found = np.empty((len(ranks), 2 * DOF), np.uint32)
    for column in columns:
        for place, rank in enumerate(ranks):
            top = int(upper[column, place])
            rest = rank - int(below[column, top] - coarse[column, top])
            bottom = np.searchsorted(np.cumsum(fine[column, top]), rest, side="right")
            found[place, column] = top << 16 | int(bottom)
    return _from_keys(found)


def _blocks(spill: IO[bytes]) -> Iterator[Keys]:
    spill.seek(0)
    while content := spill.read(BLOCK_ROWS * 2 * DOF * 4):
        yield _to_keys(np.frombuffer(content, np.float32).reshape(-1, 2 * DOF))


def _to_keys(values: npt.NDArray[np.float32]) -> Keys:
    """Return integers in the order of the values: sign bit flipped, negative values inverted."""
    bits = values.view(np.uint32)
    return bits ^ np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))


def _from_keys(keys: Keys) -> Array:
    mask = np.where(keys >> 31, np.uint32(0x80000000), np.uint32(0xFFFFFFFF))
    return (keys ^ mask).view(np.float32).astype(np.float64)
