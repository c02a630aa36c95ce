"""A LeRobotDataset v3 as an `EpisodeSource`: ours, LeRobot's own, from a folder or from the Hub.

`meta/` is read at once, frames and pictures when an episode is asked for. Only what
`meta/info.json` counts is there; a file that is missing, truncated or does not hold what `meta/`
says raises DataError with the file's name.
"""

from __future__ import annotations

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

from crane_x7_vla_rl.data.episode import DataError, Episode, EpisodeError
from crane_x7_vla_rl.data.files import read_json
from crane_x7_vla_rl.data.lerobot import layout
from crane_x7_vla_rl.data.lerobot.metadata import read_rows, read_tasks
from crane_x7_vla_rl.data.lerobot.video import VideoFrames, Videos, rate
from crane_x7_vla_rl.robot import DOF
from crane_x7_vla_rl.types import Image

OPEN_TABLES: Final = 32
"""Files of frames kept in memory; one of 100 k frames takes 8 MB."""
_COLUMNS: Final = (layout.STATE, layout.ACTION, "episode_index")


@dataclass(frozen=True)
class _Frames:
    """The joints in one file of frames."""

    state: npt.NDArray[np.float32]
    action: npt.NDArray[np.float32]
    episode: npt.NDArray[np.int64]


class LeRobotSource:
    """Episodes of the data set in `folder`; `camera` is the key of its pictures."""

    def __init__(self, folder: Path, camera: str | None = None, name: str | None = None) -> None:
        self._folder, self.name = folder, name or str(folder)
        self._info = read_json(folder / layout.INFO)
        self._check_info()
        self.camera = self._pick_camera(camera)
        self._rows = read_rows(folder, self._info)
        self._lengths = np.array([row["length"] for row in self._rows], dtype=np.int64)
        self._tasks = read_tasks(folder)
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
        path = self._folder / self._path("data", "data_path", row)
        source = f"{path} episode {index}"
        frames, start = self._frames(path), self._start(path, row)
        place = slice(start, start + row["length"])
        if not (frames.episode[place] == index).all() or len(frames.episode) < place.stop:
            raise EpisodeError(f"{source}: rows {start} to {place.stop - 1} are not all its own")
        if len(row["tasks"]) != 1 or row["tasks"][0] not in self._tasks:
            raise EpisodeError(f"{source}: tasks is {row['tasks']}, expected one of tasks.parquet")
        return Episode(
            self._images(row, path, place),
            frames.state[place],
            frames.action[place],
            row["tasks"][0],
            self.fps,
            row.get("success"),
            source,
            row.get("seed"),
        )

    def _check_info(self) -> None:
        info, path = self._info, self._folder / layout.INFO
        version = str(info.get("codebase_version"))
        if not version.startswith("v3."):
            raise DataError(
                f"{path}: codebase_version is {version}, expected v3.x; convert the data set with"
                " LeRobot's own converter to v3.0"
            )
        needed = ("fps", "features", "total_episodes", "data_path")
        missing = [name for name in needed if name not in info]
        if missing:
            raise DataError(f"{path}: lacks {', '.join(missing)}")
        for name in (layout.STATE, layout.ACTION):
            shape = info["features"].get(name, {}).get("shape")
            if shape != [DOF]:
                raise DataError(
                    f"{path}: {name} has shape {shape}, expected [{DOF}]: the joints of a CRANE-X7"
                )

    def _pick_camera(self, wanted: str | None) -> str:
        features: Mapping[str, Any] = self._info["features"]
        known = [name for name, about in features.items() if about["dtype"] in ("video", "image")]
        if wanted is None:
            wanted = known[0] if len(known) == 1 else layout.CAMERA
        if wanted not in known:
            raise DataError(
                f"{self.name}: has no camera {wanted!r}; it has {', '.join(known) or 'none'}: name"
                " one of them"
            )
        return wanted

    def _path(self, kind: str, template: str, row: Mapping[str, Any]) -> str:
        text: str = self._info[template]
        return text.format(
            video_key=self.camera,
            chunk_index=row[f"{kind}/chunk_index"],
            file_index=row[f"{kind}/file_index"],
        )

    def _start(self, path: Path, row: Mapping[str, Any]) -> int:
        """Return the row in the file at which the episode begins."""
        frames = self._frames(path)
        first = int(frames.episode[0]) if len(frames.episode) else 0
        begun: int = self._rows[first]["dataset_from_index"] if first < len(self) else 0
        return int(row["dataset_from_index"]) - begun

    def _frames(self, path: Path) -> _Frames:
        with self._lock:
            found = self._tables.pop(path, None)
            if found is None:
                found = _read_frames(path)
            self._tables[path] = found
            if len(self._tables) > OPEN_TABLES:
                self._tables.popitem(last=False)
        return found

    def _images(self, row: Mapping[str, Any], data: Path, place: slice) -> Sequence[bytes | Image]:
        if self._info["features"][self.camera]["dtype"] == "image":
            return _read_pictures(data, self.camera, place)
        kind, fps = f"videos/{self.camera}", rate(self.fps)
        start = row[f"{kind}/from_timestamp"]
        return VideoFrames(
            self._videos,
            self._folder / self._path(kind, "video_path", row),
            Fraction(round(start * fps)) / fps,
            fps,
            row["length"],
        )


def _read_frames(path: Path) -> _Frames:
    table = layout.read_table(path, _COLUMNS)
    try:
        state, action = (
            table[name].combine_chunks().flatten().to_numpy().reshape(-1, DOF)
            for name in (layout.STATE, layout.ACTION)
        )
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"{path}: state and action are not rows of {DOF} numbers") from error
    episode = table["episode_index"].to_numpy()
    if not len(state) == len(action) == len(episode):
        raise DataError(f"{path}: state, action and episode_index differ in length")
    return _Frames(state.astype(np.float32), action.astype(np.float32), episode)


def _read_pictures(path: Path, camera: str, place: slice) -> list[bytes | Image]:
    """Return encoded pictures that lie in the file of frames itself."""
    column = layout.read_table(path, [camera])[camera].slice(place.start, place.stop - place.start)
    return [entry["bytes"] for entry in column.to_pylist()]


def open_lerobot(folder_or_repo_id: str | Path, *, camera: str | None = None) -> LeRobotSource:
    """Return the episodes of a LeRobotDataset v3, local or on the Hub (owner/name[@revision]).

    `camera` is the feature key of the pictures; None takes observation.images.base, or the only
    one there is. Raises DataError where it is no such data set or its robot has other joints.
    """
    folder = Path(folder_or_repo_id).expanduser()
    if folder.is_dir():
        return LeRobotSource(folder, camera)
    from crane_x7_vla_rl.data.lerobot.hub import META, fetch

    name = str(folder_or_repo_id)
    source = LeRobotSource(fetch(name, META), camera, name)
    fetch(name, ("data/*", f"videos/{source.camera}/*"))
    return source
