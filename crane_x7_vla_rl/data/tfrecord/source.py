"""Folders of TFRecord logs, the teleop logger's and tfds's RLDS data sets → an `EpisodeSource`.

Opening indexes each file, opening an episode reads its joints, and images are read one at a time,
so the data may be larger than memory. Logs of one step per record are indexed without reading their
images; records that hold an episode each are read once to count steps. Gzipped files have no
random access: an episode is read from the file's start each time and its images are kept in memory;
unpack them for training.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, cast

import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.data.episode import DataError, Episode
from crane_x7_vla_rl.data.files import find_files
from crane_x7_vla_rl.data.reader_options import IncompleteError, RecordingError, read_options
from crane_x7_vla_rl.data.tfrecord.example import Example
from crane_x7_vla_rl.data.tfrecord.images import FilePictures, Swapped, places_of
from crane_x7_vla_rl.data.tfrecord.records import RecordFile, index_records
from crane_x7_vla_rl.data.tfrecord.rlds import (
    LOGGER_FPS,
    Columns,
    TfrecordOptions,
    build_episode,
    recorded_fps,
    steps_of,
)

logger = logging.getLogger(__name__)

NAME: Final = re.compile(r"(?P<stem>.+)\.tfrecords?(?P<shard>-\d+-of-\d+)?(\.gz)?")
SHARD: Final = re.compile(r"-(\d+)-of-(\d+)")
VERSION: Final = re.compile(r"(?P<numbers>\d+\.\d+\.\d+)(?P<unfinished>\.incomplete.*)?")
"""Name of a version's folder in a tfds data set. [tfds, core/utils/{version,file_utils}.py]"""


@dataclass(frozen=True)
class _Slot:
    """The place of one episode."""

    file: RecordFile
    record: int | None
    """Index of its record; None: every record of the file is one of its steps."""
    steps: int

    @property
    def where(self) -> str:
        return str(self.file.path) if self.record is None else self.file.where(self.record)

    def columns(self) -> Columns:
        if self.record is not None:
            where = self.file.where(self.record)
            return Columns([Example(self.file.read(self.record), where)], where)
        examples = [
            Example(content, self.file.where(index))
            for index, content in enumerate(self.file.read_all())
        ]
        return Columns(examples, str(self.file.path))


class TfrecordSource:
    """Episodes in TFRecord files; reading opens and closes its file, so threads may share this."""

    def __init__(
        self, name: str, slots: Iterable[_Slot], options: TfrecordOptions, instruction: str
    ) -> None:
        self._name, self._slots = name, tuple(slots)
        self._options, self._instruction = options, instruction
        self._fps = options.fps or self._first_fps() or LOGGER_FPS
        self._kept: dict[int, Episode] = {}
        """Episodes read before, whose images stay in their files: 80 bytes per frame."""

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, index: int) -> Episode:
        """Return episode `index`; raises EpisodeError naming file, record and feature."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self._name}: episode {index} of {len(self)}")
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        slot = self._slots[index]
        columns = slot.columns()
        episode = build_episode(columns, self._options, self._fps, self._instruction)
        images = cast(Sequence[bytes], episode.images)
        if not slot.file.gzipped:
            places = places_of(images, slot.file, slot.record, columns.contents)
            images = FilePictures(slot.file.path, places)
        episode = replace(
            episode, images=Swapped(images) if self._options.swap_red_blue else images
        )
        if not slot.file.gzipped:
            self._kept[index] = episode
        return episode

    @property
    def fps(self) -> float:
        return self._fps

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.array([slot.steps for slot in self._slots], dtype=np.int64)

    @property
    def name(self) -> str:
        return self._name

    def where(self, index: int) -> str:
        """Return file and record of episode `index`, for messages."""
        return self._slots[index].where

    def _first_fps(self) -> float | None:
        """Return the rate of the first episode, None if it is broken."""
        try:
            return recorded_fps(self._slots[0].columns()) if self._slots else None
        except RecordingError:
            return None  # Reading the episode reports the problem.


def open_tfrecord(path: Path, *, instruction: str) -> TfrecordSource:
    """Return the episodes of a folder (searched recursively) or of one TFRecord file.

    `instruction` is for records without one. `reader.yaml` next to them may set TfrecordOptions.
    Raises IncompleteError that names every file and record that cannot be indexed, and DataError
    if there is no file or `reader.yaml` is invalid.
    """
    options = read_options(path, TfrecordOptions)
    files = _files(path, options.split)
    problems: list[DataError] = list(_missing_shards(files))
    slots: list[_Slot] = []
    for file in files:
        found, wrong = _slots(file, options)
        slots += found
        problems += wrong
    source = TfrecordSource(str(path), slots, options, instruction)
    if problems:
        raise IncompleteError(str(path), problems, source if slots else None)
    return source


def _files(path: Path, split: str) -> list[Path]:
    candidates = [path] if path.is_file() else find_files(path, "**/*.tfrecord*")
    files = [file for file in candidates if file.is_file() and NAME.fullmatch(file.name)]
    if not files:
        raise RecordingError(
            str(path), "files", "are missing; expected NAME.tfrecord or NAME.tfrecord-*"
        )
    splits = {file: _split(file) for file in files}
    chosen = [file for file in files if splits[file] in (None, split)]
    if not chosen:
        known = ", ".join(sorted({str(name) for name in splits.values()}))
        raise RecordingError(
            str(path), "split", f"{split} is in no file's name, but {known}; choose in reader.yaml"
        )
    return _newest_versions(chosen, files)


def _newest_versions(chosen: Sequence[Path], files: Sequence[Path]) -> list[Path]:
    """Return `chosen` without those of tfds data sets' other versions, which repeat the data.

    `files` are those of all splits: a version that lacks the split is not read either. Among
    versions `<data set>/1.0.0`, `<data set>/1.1.0` … the newest with all its shards is used; if
    none has them all, the newest, so that its missing shards are reported.
    """
    versions: dict[Path, dict[Path, list[Path]]] = {}
    wanted = set(chosen)
    for file in files:
        if VERSION.fullmatch(file.parent.name) and SHARD.search(file.name):
            shards = versions.setdefault(file.parent.parent, {}).setdefault(file.parent, [])
            if file in wanted:
                shards.append(file)
    unread: set[Path] = set()
    for found in versions.values():
        newest_first = sorted(found, key=_version, reverse=True)
        split = [folder for folder in newest_first if found[folder]]
        if not split:
            continue
        whole = (folder for folder in split if not list(_missing_shards(found[folder])))
        read = next(whole, split[0])
        others = [folder for folder in newest_first if folder != read]
        unread.update(file for folder in others for file in found[folder])
        if others:
            logger.warning(
                "%s: version %s is read; not read: %s", read.parent, read.name,
                ", ".join(folder.name for folder in others),
            )  # fmt: skip
    return [file for file in chosen if file not in unread]


def _version(folder: Path) -> tuple[bool, list[int]]:
    """Return a sort key of versions; those that tfds was still writing come first."""
    match = VERSION.fullmatch(folder.name)
    assert match is not None
    return match["unfinished"] is None, [int(number) for number in match["numbers"].split(".")]


def _split(file: Path) -> str | None:
    """Return the split in a tfds shard's name, such as crane_x7-train.tfrecord-00000-of-00008."""
    match = NAME.fullmatch(file.name)
    if match is None or match["shard"] is None or "-" not in match["stem"]:
        return None
    return match["stem"].rpartition("-")[2]


def _missing_shards(files: Iterable[Path]) -> Iterable[DataError]:
    shards: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if match := SHARD.search(file.name):
            stem = str(file.with_name(file.name[: match.start()]))
            shards.setdefault((stem, int(match[2])), set()).add(int(match[1]))
    for (stem, count), found in shards.items():
        missing = sorted(set(range(count)) - found)
        if missing:
            names = ", ".join(f"{number:05d}" for number in missing[:10])
            yield RecordingError(
                stem, "shards", f"{names} of {count} are missing; copy or download them again"
            )


def _slots(file: Path, options: TfrecordOptions) -> tuple[list[_Slot], list[DataError]]:
    """Return the episodes of one file, and its problem."""
    slots: list[_Slot] = []
    problems: list[DataError] = []
    try:
        index = index_records(file)
    except RecordingError as error:
        return [], [error]
    for record, content in enumerate(index.read_each()):
        try:
            if isinstance(content, RecordingError):
                raise content
            steps = steps_of(Example(content, index.where(record)), options)
        except RecordingError as error:
            problems.append(error)
            continue
        if steps is not None:
            slots.append(_Slot(index, record, steps))
        elif not slots:
            # A log of steps: its other records are checked when the episode is read.
            return [_Slot(index, None, len(index))], []
        else:
            what = "is a step, those before it are episodes; expected one kind per file"
            problems.append(RecordingError(index.where(record), "layout", what))
    return slots, problems
