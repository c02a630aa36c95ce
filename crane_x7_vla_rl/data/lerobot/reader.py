"""A LeRobotDataset (v3, v2.1, v2.0) as an `EpisodeSource`: by this project or by LeRobot, in a
folder or on the Hub.

Folder or Hub id → episodes of one camera, or of all. `meta/` is read immediately, frames and images
when they are needed.
Only episodes that `meta/info.json` counts are read. Columns are ordered by the joints' names, and a
video's frames are counted by the episodes' lengths: stamps are only a check. A file that is
missing, truncated or contradicts `meta/` raises DataError with the file's name.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from crane_x7_vla_rl.data.episode import DataError, Episode, EpisodeError
from crane_x7_vla_rl.data.files import read_json
from crane_x7_vla_rl.data.lerobot import layout, v21
from crane_x7_vla_rl.data.lerobot.columns import Columns, find_columns
from crane_x7_vla_rl.data.lerobot.metadata import read_rows, read_tasks
from crane_x7_vla_rl.data.lerobot.units import to_rad
from crane_x7_vla_rl.data.lerobot.video import VideoFrames, Videos, frame_count
from crane_x7_vla_rl.data.reader_options import read_options
from crane_x7_vla_rl.data.reading import AS_STATED, Reading
from crane_x7_vla_rl.fields import quoted
from crane_x7_vla_rl.mp4 import rate
from crane_x7_vla_rl.types import Image

logger = logging.getLogger(__name__)

OPEN_TABLES: Final = 32
"""Files of frames kept in memory; one of 100 k frames takes 8 MB."""
MENDED_FRAMES: Final = 3
"""A video stamp at most this far off is corrected; further off, it may mean another episode."""
_ROW: Final = ("length", "tasks", "dataset_from_index", "data/chunk_index", "data/file_index")
_VIDEO_ROW: Final = ("chunk_index", "file_index", "from_timestamp")
"""Required columns of an episode's row; the latter for its video."""
BASE: Final = layout.CAMERA.removeprefix(layout.IMAGES)
_COLUMNS: Final = (layout.STATE, layout.ACTION, "episode_index")


@dataclass(frozen=True)
class _Frames:
    """The joints in one file of frames."""

    state: npt.NDArray[np.float32]
    action: npt.NDArray[np.float32]
    episode: npt.NDArray[np.int64]
    intervention: npt.NDArray[np.bool_] | None
    """None: the data set does not say it."""


@dataclass(frozen=True)
class _VideoPlaces:
    """Position of each of N episodes in its video; frames are counted by episodes' lengths."""

    starts: npt.NDArray[np.int64]
    """(N,) its first frame."""
    ends: npt.NDArray[np.int64]
    """(N,) number of frames of all episodes in the file."""
    drifts: npt.NDArray[np.int64]
    """(N,) number of frames that its stamp is ahead of `starts`."""


class LeRobotSource:
    """Episodes of the data set in `folder`, read as `reading` and its reader.yaml say."""

    def __init__(
        self,
        folder: Path,
        reading: Reading = AS_STATED,
        name: str | None = None,
        all_cameras: bool = False,
    ) -> None:
        """`all_cameras`: the episodes have those besides `camera` as `others`, too, unless another
        than the data set's own base camera was chosen."""
        self._folder, self.name = folder, name or str(folder)
        self._info = read_json(folder / layout.INFO)
        self._check_info()
        self.reading = reading.over(read_options(folder, Reading))
        self._columns = find_columns(folder / layout.INFO, self._info)
        self.camera = self._pick_camera(self.reading.camera)
        self.others = self._find_others() if all_cameras else {}
        """Name of each further camera that is read → its feature."""
        self._is_v21 = v21.is_v21(self._info)
        self._rows = (v21.read_rows if self._is_v21 else read_rows)(folder, self._info)
        self._check_rows()
        self._lengths = np.array([row["length"] for row in self._rows], dtype=np.int64)
        self._places = {
            key: _video_places(self._rows, key, rate(self.fps)) for key in self._videos_read()
        }
        for places in self._places.values():
            _say_drift(self.name, places.drifts)
        self._tasks = (v21.read_tasks if self._is_v21 else read_tasks)(folder)
        self._videos = Videos()
        self._tables: OrderedDict[Path, _Frames] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def fps(self) -> float:
        """Frames per second."""
        return float(self._info["fps"])

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(N,) frames of each episode."""
        return self._lengths

    def __getitem__(self, index: int) -> Episode:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: episode {index} of {len(self)}")
        row = self._rows[index]
        path = self._folder / self._path(self.camera, "data", "data_path", row)
        source = f"{path} episode {index}"
        frames, start = self._frames(path), self._start(path, row)
        place = slice(start, start + row["length"])
        if not (frames.episode[place] == index).all() or len(frames.episode) < place.stop:
            raise EpisodeError(
                f"{source}: some of its rows {start} to {place.stop - 1} belong to another episode"
            )
        if len(row["tasks"]) != 1 or row["tasks"][0] not in self._tasks:
            raise EpisodeError(f"{source}: tasks is {row['tasks']}, expected one of meta/tasks.*")
        marks = frames.intervention
        return Episode(
            self._images(self.camera, index, source, path, place),
            frames.state[place],
            frames.action[place],
            row["tasks"][0],
            self.fps,
            row.get("success"),
            source,
            row.get("seed"),
            {name: self._images(key, index, source, path, place)
             for name, key in self.others.items()},
            None if marks is None else marks[place],
        )  # fmt: skip

    def interventions(self) -> npt.NDArray[np.bool_] | None:
        """Return which frames of all episodes are interventions, one after another; None if the
        data set does not say it. Raises DataError."""
        if not self._has_marks:
            return None
        found = []
        for row in self._rows:
            path = self._folder / self._path(self.camera, "data", "data_path", row)
            marks, start = self._frames(path).intervention, self._start(path, row)
            assert marks is not None
            found.append(marks[start : start + row["length"]])
        return np.concatenate(found) if found else np.zeros(0, bool)

    @property
    def _has_marks(self) -> bool:
        about = self._info["features"].get(layout.INTERVENTION)
        return about is not None and about["dtype"] == "bool"

    def _check_info(self) -> None:
        info, path = self._info, self._folder / layout.INFO
        version = str(info.get("codebase_version"))
        if not version.startswith("v3.") and not v21.is_v21(info):
            raise DataError(
                f"{path}: codebase_version is {version}, expected v3.x, v2.1 or v2.0; convert the"
                " data set with LeRobot's own converter to v3.0"
            )
        needed = ("fps", "features", "total_episodes", "data_path")
        missing = [name for name in needed if name not in info]
        if missing:
            raise DataError(f"{path}: lacks {', '.join(missing)}")
        fps, total, features = info["fps"], info["total_episodes"], info["features"]
        if type(fps) not in (int, float) or not 0 < fps < math.inf:
            raise DataError(f"{path}: fps is {quoted(fps)}, expected frames per second above 0")
        if type(total) is not int or total < 0:
            raise DataError(f"{path}: total_episodes is {quoted(total)}, expected a number")
        if not isinstance(features, Mapping):
            raise DataError(f"{path}: features is {quoted(features)}, expected an object")
        for name, about in features.items():
            if not isinstance(about, Mapping) or "dtype" not in about:
                raise DataError(
                    f"{path}: {name} is {quoted(about)}, expected dtype, shape and names"
                )

    def _check_rows(self) -> None:
        """Raise DataError if an episode's row lacks a value that is needed to find its frames."""
        needed = [*_ROW]
        needed += [f"videos/{key}/{name}" for key in self._videos_read() for name in _VIDEO_ROW]
        for index, row in enumerate(self._rows):
            for key in needed:
                value = row.get(key)
                if value is None or (isinstance(value, float) and not math.isfinite(value)):
                    raise DataError(
                        f"{self._folder}/meta/episodes: {key} of episode {index} is {value};"
                        " correct it, or convert the data set again"
                    )

    def _videos_read(self) -> list[str]:
        """Return the features of the cameras that are read and stored as videos."""
        features = self._info["features"]
        keys = (self.camera, *self.others.values())
        return [key for key in keys if features[key]["dtype"] == "video"]

    def _cameras(self) -> list[str]:
        features: Mapping[str, Any] = self._info["features"]
        return [name for name, about in features.items() if about["dtype"] in ("video", "image")]

    def _find_others(self) -> dict[str, str]:
        """Return the name and feature of each camera besides the chosen one; none if that stands
        for a base camera which the data set has, too."""
        found = {
            key.removeprefix(layout.IMAGES): key for key in self._cameras() if key != self.camera
        }
        return {} if BASE in found else found

    def _pick_camera(self, wanted: str | None) -> str:
        known = self._cameras()
        if wanted is None:
            wanted = known[0] if len(known) == 1 else layout.CAMERA
        found = next((name for name in (wanted, layout.IMAGES + wanted) if name in known), None)
        if found is None:
            raise DataError(
                f'{self.name}: has no camera "{wanted}"; it has {", ".join(known) or "none"}: name'
                " one of them with --camera, or as camera in reader.yaml"
            )
        return found

    def _path(self, camera: str, kind: str, template: str, row: Mapping[str, Any]) -> str:
        text: str = self._info[template]
        return text.format(
            video_key=camera,
            chunk_index=row[f"{kind}/chunk_index"],
            file_index=row[f"{kind}/file_index"],
            # v2.1 has one file for each episode, and these names.
            episode_chunk=row[f"{kind}/chunk_index"],
            episode_index=row["episode_index"],
        )

    def _start(self, path: Path, row: Mapping[str, Any]) -> int:
        """Return the row in the file where the episode starts."""
        frames = self._frames(path)
        first = int(frames.episode[0]) if len(frames.episode) else 0
        begun: int = self._rows[first]["dataset_from_index"] if first < len(self) else 0
        return int(row["dataset_from_index"]) - begun

    def _frames(self, path: Path) -> _Frames:
        with self._lock:
            found = self._tables.pop(path, None)
            if found is None:
                found = _read_frames(path, self._columns, self.reading, self._has_marks)
            self._tables[path] = found
            if len(self._tables) > OPEN_TABLES:
                self._tables.popitem(last=False)
        return found

    def _images(
        self, camera: str, index: int, source: str, data: Path, place: slice
    ) -> Sequence[bytes | Image]:
        places = self._places.get(camera)
        if places is None:
            return _read_pictures(data, camera, place)
        row, kind, fps = self._rows[index], f"videos/{camera}", rate(self.fps)
        path = self._folder / self._path(camera, kind, "video_path", row)
        start, end, drift = (
            int(values[index]) for values in (places.starts, places.ends, places.drifts)
        )
        if drift and (abs(drift) > MENDED_FRAMES or frame_count(path) != end):
            raise EpisodeError(
                f"{source}: images begin at {row[f'{kind}/from_timestamp']:.3f} s of {path.name}"
                f" ({frame_count(path)} frames) by their stamp, {drift:+d} frames from frame"
                f" {start}, where the episodes before it end (all: {end} frames);"
                " correct from_timestamp in meta/episodes, or convert the data set again"
            )
        return VideoFrames(self._videos, path, start / fps, fps, row["length"])


def _video_places(rows: Sequence[Mapping[str, Any]], camera: str, fps: Fraction) -> _VideoPlaces:
    """Return the positions of the episodes in their videos."""
    chunk, file, stamp = (f"videos/{camera}/{name}" for name in _VIDEO_ROW)
    files = [(row[chunk], row[file]) for row in rows]
    starts = np.zeros(len(rows), np.int64)
    ends: dict[tuple[int, int], int] = {}
    for index in sorted(range(len(rows)), key=lambda index: (files[index], rows[index][stamp])):
        starts[index] = ends.get(files[index], 0)
        ends[files[index]] = int(starts[index]) + rows[index]["length"]
    stamps = np.array([round(row[stamp] * fps) for row in rows], np.int64)
    return _VideoPlaces(starts, np.array([ends[of] for of in files], np.int64), stamps - starts)


def _say_drift(name: str, drifts: npt.NDArray[np.int64]) -> None:
    mended = np.abs(drifts[(drifts != 0) & (np.abs(drifts) <= MENDED_FRAMES)])
    if len(mended):
        logger.warning(
            "%s: the video stamps of %d episodes are up to %d frames off; the lengths of the"
            " episodes before them are used instead", name, len(mended), mended.max(),
        )  # fmt: skip


def _read_frames(
    path: Path, columns: Mapping[str, Columns], reading: Reading, has_marks: bool
) -> _Frames:
    marked = (layout.INTERVENTION,) if has_marks else ()
    table = layout.read_table(path, (*_COLUMNS, *marked))
    joints = []
    for name in (layout.STATE, layout.ACTION):
        width, places = columns[name].width, list(columns[name].places)
        try:
            rows = _rows_of(table[name], width)[:, places]
        except (pa.ArrowException, ValueError) as error:
            raise DataError(f"{path}: {name} does not hold rows of {width} numbers") from error
        joints.append(to_rad(rows, reading, f"{path}: {name}"))
    state, action = joints
    episode = table["episode_index"].to_numpy()
    if not len(state) == len(action) == len(episode):
        raise DataError(f"{path}: state, action and episode_index differ in length")
    return _Frames(state, action, episode, _read_marks(path, table) if has_marks else None)


def _read_marks(path: Path, table: pa.Table) -> npt.NDArray[np.bool_]:
    """Return (T,) of the column of interventions; LeRobot writes it as lists of one value."""
    column = table[layout.INTERVENTION].combine_chunks()
    if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        column = column.flatten()
    if not pa.types.is_boolean(column.type) or column.null_count or len(column) != len(table):
        raise DataError(
            f"{path}: {layout.INTERVENTION} holds {column.type} with {column.null_count} empty of"
            f" {len(column)} values, expected true or false in each of {len(table)} frames"
        )
    marks: npt.NDArray[np.bool_] = column.to_numpy(zero_copy_only=False)
    return marks


def _rows_of(column: pa.ChunkedArray, width: int) -> npt.NDArray[Any]:
    """Return the (T, width) of a column of lists; raises ValueError for lists of other lengths."""
    lengths = pc.unique(pc.list_value_length(column)).to_pylist()
    if lengths not in ([], [width]):
        raise ValueError(f"lists of {lengths} values")
    rows: npt.NDArray[Any] = column.combine_chunks().flatten().to_numpy().reshape(-1, width)
    return rows


def _read_pictures(path: Path, camera: str, place: slice) -> list[bytes | Image]:
    """Return encoded images from the file of frames itself."""
    column = layout.read_table(path, [camera])[camera].slice(place.start, place.stop - place.start)
    return [entry["bytes"] for entry in column.to_pylist()]


def open_lerobot(
    folder_or_repo_id: str | Path, *, reading: Reading = AS_STATED, all_cameras: bool = False
) -> LeRobotSource:
    """Return the episodes of a LeRobotDataset, local or on the Hub (owner/name[@revision]).

    `reading.camera` None: observation.images.base, or the only camera. With `all_cameras` the
    others' images are in `Episode.others`, see LeRobotSource. Raises DataError if it is not such a
    data set, its robot has other joints, or its values cannot be in the stated unit.
    """
    folder = Path(folder_or_repo_id).expanduser()
    if folder.is_dir():
        return LeRobotSource(folder, reading, all_cameras=all_cameras)
    from crane_x7_vla_rl.data.lerobot.hub import META, fetch_dataset

    name = str(folder_or_repo_id)
    source = LeRobotSource(fetch_dataset(name, META), reading, name, all_cameras)
    # v3: videos/CAMERA/chunk-…; v2.1: videos/chunk-…/CAMERA.
    cameras = (source.camera, *source.others.values())
    videos = [pattern for key in cameras for pattern in (f"videos/{key}/*", f"videos/*/{key}/*")]
    fetch_dataset(name, ("data/*", *videos))
    return source
