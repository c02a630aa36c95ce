"""The protocol of all readers, and their choice. Path or Hub id → an `EpisodeSource`.

The folder's content determines the reader; users do not name a format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.data.episode import DataError, Episode
from crane_x7_vla_rl.data.files import is_hidden
from crane_x7_vla_rl.data.reading import AS_STATED, Reading

REPO_ID: Final = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")

DEFAULT_INSTRUCTION: Final = "Pick and place the object"
"""Instruction for logs without one. [the former trainer's `--instruction`]"""


class EpisodeSource(Protocol):
    """Episodes by number. Reading is thread-safe, and an episode's images are read lazily."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Episode:
        """Return episode `index`, 0 ≤ index < len; raises EpisodeError if it is broken."""
        ...

    @property
    def fps(self) -> float:
        """Frames per second, the same for all episodes."""
        ...

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(N,) frames of each episode, known without decoding any."""
        ...

    @property
    def name(self) -> str:
        """Folder or Hub id, for messages."""
        ...


READERS: Final = (
    ("meta/info.json", "lerobot", "open_lerobot"),
    ("**/*.tfrecord*", "tfrecord.source", "open_tfrecord"),
    ("**/*.db3", "rosbags.source", "open_rosbags"),
    ("**/*.mcap", "rosbags.source", "open_rosbags"),
    ("**/metadata.yaml", "rosbags.source", "open_rosbags"),  # files compressed as a whole
)
"""(pattern in the folder, module of this package, function); the first that matches is used."""


def open_source(
    path: str | Path,
    *,
    instruction: str = DEFAULT_INSTRUCTION,
    reading: Reading = AS_STATED,
    all_cameras: bool = False,
) -> EpisodeSource:
    """Return the episodes in a folder, a single log file, or a LeRobot data set's Hub id.

    `instruction` is for formats, or episodes, without one; `reading` and `all_cameras` (the images
    of every camera) are for LeRobot data sets. Raises DataError if the folder contains no known
    format.
    """
    folder, (module, function) = Path(path).expanduser(), find_reader(path)
    reader = _reader(module, function)
    if module == "lerobot":
        place = folder if folder.exists() else str(path)
        return reader(place, reading=reading, all_cameras=all_cameras)
    if reading != AS_STATED:
        raise DataError(
            f"{path}: {reading.flags} is only for LeRobot data sets; logs and bags are in rad, and"
            " reader.yaml beside them names their camera"
        )
    return reader(folder, instruction=instruction)


def find_reader(path: str | Path) -> tuple[str, str]:
    """Return the module and function that read a data set; nothing is read yet.

    Raises DataError if the folder contains no known format.
    """
    folder = Path(path).expanduser()
    if not folder.exists() and REPO_ID.fullmatch(str(path)):
        return "lerobot", "open_lerobot"
    if not folder.exists():
        raise DataError(
            f"{path}: this folder does not exist, and it is not a Hub id (owner/name) either"
        )
    for pattern, module, function in READERS:
        if _holds(folder, pattern):
            return module, function
    patterns = [pattern for pattern, _, _ in READERS]
    hidden = {found for pattern in patterns for found in folder.glob(pattern)}
    left_out = f"; skipped {len(hidden)} whose names begin with a dot" if hidden else ""
    raise DataError(f"{folder}: found no episodes; expected one of {', '.join(patterns)}{left_out}")


def _holds(path: Path, pattern: str) -> bool:
    if path.is_file():
        return path.match(pattern.removeprefix("**/"))
    return any(not is_hidden(found, path) for found in path.glob(pattern))


def _reader(module: str, function: str) -> Callable[..., EpisodeSource]:
    reader: Callable[..., EpisodeSource] = getattr(
        import_module(f"crane_x7_vla_rl.data.{module}"), function
    )
    return reader


def interventions(source: EpisodeSource) -> npt.NDArray[np.bool_] | None:
    """Return which frames of all episodes of `source` are interventions, one after another; None
    if the recordings do not say it. Raises DataError."""
    marked = getattr(source, "interventions", None)  # only LeRobot data sets have the column
    found: npt.NDArray[np.bool_] | None = None if marked is None else marked()
    return found


def select(source: EpisodeSource, episodes: Sequence[int]) -> EpisodeSource:
    """Return only these `episodes`, in this order, numbered from 0."""
    return _Selection(source, tuple(episodes))


class _Selection:
    def __init__(self, source: EpisodeSource, episodes: tuple[int, ...]) -> None:
        wrong = [index for index in episodes if not 0 <= index < len(source)]
        if wrong:
            raise DataError(
                f"{source.name}: has no episode {wrong[0]}; it has {len(source)}, from 0"
            )
        self._source, self._episodes = source, episodes

    def __len__(self) -> int:
        return len(self._episodes)

    def __getitem__(self, index: int) -> Episode:
        return self._source[self._episodes[index]]

    @property
    def fps(self) -> float:
        return self._source.fps

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return self._source.lengths[list(self._episodes)]

    @property
    def name(self) -> str:
        return self._source.name

    def interventions(self) -> npt.NDArray[np.bool_] | None:
        marks, lengths = interventions(self._source), self._source.lengths
        if marks is None:
            return None
        parts = np.split(marks, np.cumsum(lengths)[:-1])
        return np.concatenate([parts[index] for index in self._episodes] or [marks[:0]])


def join(sources: Sequence[EpisodeSource]) -> EpisodeSource:
    """Return the episodes of several data sets, one after another.

    Its rate is that of the first; whoever needs one rate checks it.
    """
    return sources[0] if len(sources) == 1 else _Joined(tuple(sources))


class _Joined:
    def __init__(self, sources: tuple[EpisodeSource, ...]) -> None:
        self._sources = sources
        self._ends = np.cumsum([len(source) for source in sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Episode:
        number = int(np.searchsorted(self._ends, index, "right"))
        source = self._sources[number]
        return source[index - int(self._ends[number]) + len(source)]

    @property
    def fps(self) -> float:
        return self._sources[0].fps

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.concatenate([source.lengths for source in self._sources])

    @property
    def name(self) -> str:
        return ", ".join(source.name for source in self._sources)

    def interventions(self) -> npt.NDArray[np.bool_] | None:
        marks = [interventions(source) for source in self._sources]
        if all(mark is None for mark in marks):
            return None
        return np.concatenate(
            [
                np.zeros(int(source.lengths.sum()), np.bool_) if mark is None else mark
                for source, mark in zip(self._sources, marks, strict=True)
            ]
        )
