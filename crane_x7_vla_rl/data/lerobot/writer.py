"""Write a LeRobotDataset v3 that is complete at every moment. Episodes → groups of files.

`add` encodes an episode into the staging folder, synced; staged episodes are published in groups,
one file each of frames, video and episode rows, and `meta/info.json`, replaced last, counts them. A
killed writer loses at most the episode it was adding: with `resume` the next writer publishes the
staged episodes and overwrites files that `info.json` does not count.
"""

from __future__ import annotations

import logging
import shutil
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import av
import numpy as np
import pyarrow as pa

from crane_x7_vla_rl.data.episode import DataError, Episode, EpisodeError
from crane_x7_vla_rl.data.files import read_json, write_json, write_whole
from crane_x7_vla_rl.data.lerobot import layout, video
from crane_x7_vla_rl.data.lerobot.lock import take_lock
from crane_x7_vla_rl.data.lerobot.metadata import (
    Published,
    counted,
    read_published,
    rows_table,
    tasks_table,
)
from crane_x7_vla_rl.data.lerobot.staging import ABOUT, Staged, folder_of, read_staged, stage
from crane_x7_vla_rl.data.lerobot.stats import Stats, combine, vector_stats
from crane_x7_vla_rl.file_errors import why

logger = logging.getLogger(__name__)

GROUP_EPISODES: Final = 64
GROUP_BYTES: Final = 100 << 20
"""A group is published when its videos have this many bytes, or it has this many episodes."""


class LeRobotWriter:
    """Appends episodes; each is safe on disk when `add` returns, and in the data set after `close`.

    `image_size` is (width, height) of the base camera. Raises DataError if the folder holds a data
    set and `resume` is False, if it holds one of another fps, size or extras, and if another writer
    uses it.
    """

    def __init__(
        self,
        folder: str | Path,
        fps: float,
        image_size: tuple[int, int],
        *,
        resume: bool = False,
        extras: layout.Extras = layout.PLAIN,
    ) -> None:
        self.folder = Path(folder).expanduser()
        self.fps, self.image_size, self.extras = fps, image_size, extras
        self._features = layout.features(fps, image_size, video.INFO, extras)
        self._staging = self.folder / layout.STAGING
        if not resume and self._has_data():
            raise DataError(
                f"{self.folder}: holds a data set already; resume it, or use another folder"
            )
        self._staging.mkdir(parents=True, exist_ok=True)
        self._lock = take_lock(self._staging / "lock", self.folder)
        try:
            self._published = read_published(self.folder, self._features, fps)
            self._staged = read_staged(self._staging, self._published.episodes)
            for item in self._staged:
                self._check_kind(f"{item.folder}", *item.kind())
        except BaseException:
            self._lock.close()
            raise

    def __len__(self) -> int:
        """Return the number of episodes, including earlier runs."""
        return self._published.episodes + len(self._staged)

    @property
    def seeds(self) -> frozenset[int]:
        """Seeds of all episodes so far, including earlier runs."""
        staged = {item.about["seed"] for item in self._staged}
        return self._published.seeds | (staged - {None})

    def add(self, episode: Episode) -> int:
        """Append the episode and return its number.

        Raises EpisodeError for another fps or image size, DataError if the disk fails; the data set
        then holds all episodes before this one.
        """
        self._check(episode)
        number = len(self)
        try:
            self._staged.append(stage(episode, folder_of(self._staging, number)))
            if self._group_is_full():
                self._publish()
        except (OSError, av.FFmpegError) as error:
            raise DataError(
                f"{self.folder}: episode {number} cannot be written ({why(error)}); free space or"
                f" check the disk and resume: the {len(self)} episodes so far are kept"
            ) from error
        return number

    def close(self) -> None:
        """Publish the staged episodes; the data set is then complete for every reader."""
        if self._lock.closed:
            return
        try:
            if self._staged:
                self._publish()
            shutil.rmtree(self._staging)
        except (OSError, av.FFmpegError) as error:
            raise DataError(
                f"{self.folder}: the last episodes cannot be published ({why(error)}); free space"
                " and resume: they are kept"
            ) from error
        finally:
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception):
            self._lock.close()  # the next writer publishes the staged episodes
        else:
            self.close()

    def _has_data(self) -> bool:
        return (self.folder / layout.INFO).exists() or any(self._staging.glob("episode-*"))

    def _check(self, episode: Episode) -> None:
        if self._lock.closed:
            raise DataError(f"{self.folder}: the writer is closed; open a new one with resume")
        self._check_kind(episode.source, episode.fps, *layout.Extras.of(episode))

    def _check_kind(
        self, source: str, fps: float, size: tuple[int, int], extras: layout.Extras
    ) -> None:
        if (fps, size) != (self.fps, self.image_size):
            raise EpisodeError(
                f"{source}: has {fps:g} frames/s of {size[0]}×{size[1]}, expected {self.fps:g} of"
                f" {self.image_size[0]}×{self.image_size[1]} for {self.folder}"
            )
        if extras != self.extras:
            raise EpisodeError(f"{source}: has {extras}, expected {self.extras} for {self.folder}")

    def _group_is_full(self) -> bool:
        size = sum(item.video_bytes for item in self._staged)
        return len(self._staged) >= GROUP_EPISODES or size >= GROUP_BYTES

    def _publish(self) -> None:
        """Write the staged episodes as one group of files, then count them in info.json."""
        staged, before = self._staged, self._published
        group = layout.Group(before.groups)
        texts = [item.about["instruction"] for item in staged]
        tasks = tuple(dict.fromkeys((*before.tasks, *texts)))
        builder = _Tables(before, tasks, self.fps, group, self.extras)
        for item in staged:
            builder.add(item)
        stats = combine([*([before.stats] if before.episodes else []), *builder.stats])
        layout.write_table(self.folder / layout.TASKS, tasks_table(tasks))
        for camera, key in zip((None, *self.extras.cameras), self.extras.keys, strict=True):
            films = [item.video(camera) for item in staged]
            write_whole(self.folder / group.video(key), partial(video.join, films, self.fps))
        layout.write_table(self.folder / group.data, pa.concat_tables(builder.frames))
        layout.write_table(
            self.folder / group.episodes, rows_table(builder.rows, builder.stats, self.extras)
        )
        write_json(
            self.folder / layout.STATS,
            {feature: {name: value.tolist() for name, value in one.items()}
             for feature, one in stats.items()},
        )  # fmt: skip
        seeds = frozenset({item.about["seed"] for item in staged} - {None})
        published = Published(
            builder.episode, builder.index, before.groups + 1, tasks, before.seeds | seeds, stats
        )
        try:
            write_json(self.folder / layout.INFO, self._info(published))
        finally:
            # An interrupt may occur between the update of the file and of this object.
            if counted(self.folder) == published.episodes:
                self._published, self._staged = published, []
        for item in staged:
            shutil.rmtree(item.folder)
        logger.info("%s: %d episodes, %d frames", self.folder, builder.episode, builder.index)

    def _info(self, published: Published) -> dict[str, Any]:
        return {
            "codebase_version": layout.VERSION,
            "robot_type": self.extras.robot_type,
            "total_episodes": published.episodes,
            "total_frames": published.frames,
            "total_tasks": len(published.tasks),
            "chunks_size": layout.FILES_PER_CHUNK,
            "data_files_size_in_mb": GROUP_BYTES >> 20,
            "video_files_size_in_mb": GROUP_BYTES >> 20,
            "fps": layout.json_number(self.fps),
            "splits": {"train": f"0:{published.episodes}"},
            "data_path": layout.DATA_PATH,
            "video_path": layout.VIDEO_PATH,
            "features": self._features,
        }


class _Tables:
    """Frames, rows and statistics of a group, episode by episode."""

    def __init__(
        self,
        before: Published,
        tasks: tuple[str, ...],
        fps: float,
        group: layout.Group,
        extras: layout.Extras,
    ) -> None:
        self.episode, self.index = before.episodes, before.frames
        """Number of the next episode, and of its first frame in the data set."""
        self.frames: list[pa.Table] = []
        self.rows: list[dict[str, Any]] = []
        self.stats: list[Stats] = []
        self._tasks, self._fps, self._group, self._extras = tasks, fps, group, extras
        self._begun = before.frames

    def add(self, item: Staged) -> None:
        """Append one episode."""
        state, action = item.joints()
        steps = np.arange(item.length)
        columns: dict[str, np.ndarray[Any, Any]] = {
            layout.ACTION: action,
            layout.STATE: state,
            "timestamp": (steps / self._fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(item.length, self.episode),
            "index": self.index + steps,
            "task_index": np.full(item.length, self._tasks.index(item.about["instruction"])),
        }
        marks = item.intervention()
        if marks is not None:
            columns[layout.INTERVENTION] = marks
        arrays = [_arrow(values) for values in columns.values()]
        self.frames.append(pa.table(arrays, schema=self._extras.frame_schema))
        self.stats.append(
            {key: item.pictures(camera)
             for key, camera in zip(self._extras.keys, (None, *self._extras.cameras), strict=True)}
            | {name: vector_stats(values.reshape(item.length, -1))
               for name, values in columns.items()}
        )  # fmt: skip
        self.rows.append(self._row(item))
        self.episode, self.index = self.episode + 1, self.index + item.length

    def _row(self, item: Staged) -> dict[str, Any]:
        start = (self.index - self._begun) / self._fps
        places = {
            f"{kind}/{name}": number
            for kind in ("data", *(f"videos/{key}" for key in self._extras.keys), "meta/episodes")
            for name, number in self._group.indices.items()
        }
        return {
            "episode_index": self.episode,
            "tasks": [item.about["instruction"]],
            "length": item.length,
            "dataset_from_index": self.index,
            "dataset_to_index": self.index + item.length,
            **{f"videos/{key}/from_timestamp": start for key in self._extras.keys},
            **{
                f"videos/{key}/to_timestamp": start + item.length / self._fps
                for key in self._extras.keys
            },
            **places,
            **{name: item.about[name] for name in ("success", "seed", "source")},
        }


def recover(folder: str | Path) -> int | None:
    """Publish the episodes that a killed writer has left; return the number of episodes.

    None: the folder holds nothing yet. Raises DataError as LeRobotWriter does.
    """
    path = Path(folder).expanduser()
    published = counted(path)
    first = folder_of(path / layout.STAGING, published)
    if not first.exists():
        return published if (path / layout.INFO).exists() else None
    fps, size, extras = Staged(first, read_json(first / ABOUT)).kind()
    with LeRobotWriter(path, fps, size, resume=True, extras=extras) as writer:
        return len(writer)


def _arrow(values: np.ndarray[Any, Any]) -> pa.Array:
    """Return (T,) as an array, (T, D) as one of fixed lists."""
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
