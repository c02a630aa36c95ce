"""Paths and table schemas of a LeRobotDataset v3. Parquet file ↔ table.

One group of episodes is one file of frames (parquet), one video and one file of episode rows, all
with the same number. `meta/info.json` is replaced last: files that it does not count are ignored.
Layout taken from, and tested against, lerobot 0.6.1 (`lerobot/datasets/utils.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from crane_x7_vla_rl.data.episode import DataError, Episode
from crane_x7_vla_rl.data.files import write_whole
from crane_x7_vla_rl.file_errors import why
from crane_x7_vla_rl.robot import DOF, JOINT_NAMES

VERSION: Final = "v3.0"
IMAGES: Final = "observation.images."
CAMERA: Final = IMAGES + "base"
STATE: Final = "observation.state"
ACTION: Final = "action"
INTERVENTION: Final = "intervention"
"""(1,) bool: someone else acted while a policy was driving; only in recordings of a robot."""
FILES_PER_CHUNK: Final = 1000
INFO: Final = "meta/info.json"
STATS: Final = "meta/stats.json"
TASKS: Final = "meta/tasks.parquet"
DATA_PATH: Final = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH: Final = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH: Final = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
STAGING: Final = ".staging"
"""Episodes that are safe on disk and wait for their group; readers ignore this folder."""

_JOINTS = pa.list_(pa.float32(), DOF)
FRAME_SCHEMA: Final = pa.schema(
    [
        (ACTION, _JOINTS),
        (STATE, _JOINTS),
        ("timestamp", pa.float32()),
        ("frame_index", pa.int64()),
        ("episode_index", pa.int64()),
        ("index", pa.int64()),
        ("task_index", pa.int64()),
    ]
)
_EPISODE_FIELDS: Final = (
    ("episode_index", pa.int64()),
    ("tasks", pa.list_(pa.string())),
    ("length", pa.int64()),
    ("data/chunk_index", pa.int64()),
    ("data/file_index", pa.int64()),
    ("dataset_from_index", pa.int64()),
    ("dataset_to_index", pa.int64()),
    ("meta/episodes/chunk_index", pa.int64()),
    ("meta/episodes/file_index", pa.int64()),
    ("success", pa.bool_()),
    ("seed", pa.int64()),
    ("source", pa.string()),
)
"""Columns of the episode rows besides those of its videos; the last three are this project's,
LeRobot ignores them."""
_VIDEO_FIELDS: Final = (
    ("chunk_index", pa.int64()),
    ("file_index", pa.int64()),
    ("from_timestamp", pa.float64()),
    ("to_timestamp", pa.float64()),
)


@dataclass(frozen=True)
class Extras:
    """What a data set has besides one camera, state and action."""

    cameras: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Name of each further camera → its (width, height)."""
    intervention: bool = False
    """Whether each frame says if it is an intervention."""
    joints: tuple[str, ...] = JOINT_NAMES
    """The columns of state and action."""
    robot_type: str = field(default="crane_x7", compare=False)
    """LeRobot's word for the robot in info.json."""

    @staticmethod
    def of(episode: Episode) -> tuple[tuple[int, int], Extras]:
        """Return the (width, height) of an episode's base camera, and what else it has."""
        others = {name: _size(episode.seen_by(name)) for name in episode.others}
        return _size(episode), Extras(others, episode.intervention is not None, episode.joints)

    @property
    def keys(self) -> tuple[str, ...]:
        """The features of all cameras, the base first."""
        return CAMERA, *(IMAGES + name for name in self.cameras)

    def __str__(self) -> str:
        cameras = ["base", *(f"{name} {w}×{h}" for name, (w, h) in self.cameras.items())]
        marks = "with" if self.intervention else "without"
        robot = "" if self.joints == JOINT_NAMES else f"the joints {', '.join(self.joints)} and "
        return f"{robot}the cameras {', '.join(cameras)} {marks} {INTERVENTION}"

    @property
    def frame_schema(self) -> pa.Schema:
        """Schema of the files of frames."""
        vector = pa.list_(pa.float32(), len(self.joints))
        schema = FRAME_SCHEMA
        for at, name in enumerate((ACTION, STATE)):
            schema = schema.set(at, pa.field(name, vector))
        marks = pa.field(INTERVENTION, pa.bool_())
        return schema.append(marks) if self.intervention else schema

    @property
    def episode_fields(self) -> tuple[tuple[str, pa.DataType], ...]:
        """Columns of the episode rows."""
        videos = (
            (f"videos/{key}/{name}", kind) for key in self.keys for name, kind in _VIDEO_FIELDS
        )
        return (*_EPISODE_FIELDS, *videos)


def _size(episode: Episode) -> tuple[int, int]:
    height, width, _ = episode.image(0).shape
    return width, height


PLAIN: Final = Extras()


@dataclass(frozen=True)
class Group:
    """Number of a file in the data set, counted over all chunks."""

    number: int

    @property
    def indices(self) -> dict[str, int]:
        """chunk_index and file_index."""
        chunk, file = divmod(self.number, FILES_PER_CHUNK)
        return {"chunk_index": chunk, "file_index": file}

    @property
    def data(self) -> str:
        """Path of its frames, relative to the data set."""
        return DATA_PATH.format(**self.indices)

    def video(self, key: str) -> str:
        """Path of its video of one camera's feature."""
        return VIDEO_PATH.format(video_key=key, **self.indices)

    @property
    def episodes(self) -> str:
        """Path of its episode rows."""
        return EPISODES_PATH.format(**self.indices)


def features(
    fps: float, image_size: tuple[int, int], video: Mapping[str, Any], extras: Extras = PLAIN
) -> dict[str, Any]:
    """Return the `features` of info.json; `image_size` is (width, height)."""
    names = extras.joints
    joints = {"dtype": "float32", "shape": [len(names)], "names": list(names)}
    scalar = {"shape": [1], "names": None}
    return {
        ACTION: dict(joints),
        STATE: dict(joints),
        **{
            key: _camera(fps, size, video)
            for key, size in zip(extras.keys, (image_size, *extras.cameras.values()), strict=True)
        },
        **({INTERVENTION: {"dtype": "bool", **scalar}} if extras.intervention else {}),
        "timestamp": {"dtype": "float32", **scalar},
        **{
            name: {"dtype": "int64", **scalar}
            for name in ("frame_index", "episode_index", "index", "task_index")
        },
    }


def _camera(fps: float, size: tuple[int, int], video: Mapping[str, Any]) -> dict[str, Any]:
    width, height = size
    return {
        "dtype": "video",
        "shape": [height, width, 3],
        "names": ["height", "width", "channels"],
        "info": {
            "video.height": height,
            "video.width": width,
            "video.fps": json_number(fps),
            "video.channels": 3,
            "is_depth_map": False,
            "has_audio": False,
            **video,
        },
    }


def json_number(value: float) -> float | int:
    """Return a whole number as int, as LeRobot writes frame rates."""
    return int(value) if float(value).is_integer() else float(value)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the columns of a parquet file; raises DataError that names the file."""
    try:
        with pq.ParquetFile(path) as file:
            table = file.read(None if columns is None else list(columns))
    except FileNotFoundError as error:
        raise DataError(f"{path}: the file is missing; copy the data set again") from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: the parquet file is truncated or broken ({why(error)}); copy it again, or use"
            " the data set without these episodes"
        ) from error
    missing = set(columns or ()) - set(table.column_names)
    if missing:
        raise DataError(f"{path}: lacks the column {min(missing)}; it has {table.column_names}")
    return table


def write_table(path: Path, table: pa.Table) -> None:
    """Replace the parquet file at `path`."""
    write_whole(path, lambda partial: pq.write_table(table, partial, compression="snappy"))
