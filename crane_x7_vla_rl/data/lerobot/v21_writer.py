"""Write LeRobot format v2.1, which openpi's trainer reads. Episodes → a file and a video each.

`meta/info.json` is replaced last, so readers that count its episodes never see half of one. A
killed writer leaves at most one episode that is not counted; with `resume` the next writer replaces
it.
Layout taken from, and tested against, the converter of lerobot 0.6.1, which reads v2.1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import av
import numpy as np
import pyarrow as pa

from crane_x7_vla_rl.data.episode import DataError, Episode, EpisodeError
from crane_x7_vla_rl.data.files import read_json, sync, write_json, write_whole
from crane_x7_vla_rl.data.lerobot import layout, v21, video
from crane_x7_vla_rl.data.lerobot.lock import take_lock
from crane_x7_vla_rl.data.lerobot.stats import image_stats, vector_stats
from crane_x7_vla_rl.fields import quoted
from crane_x7_vla_rl.file_errors import why
from crane_x7_vla_rl.robot import DOF

DATA_PATH: Final = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH: Final = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
STATS: Final = ("min", "max", "mean", "std", "count")
"""Statistics of each feature and episode."""
LOCK: Final = "meta/.lock"


class V21Writer:
    """Appends episodes; each is in the data set when `add` returns.

    `image_size` is (width, height) of the base camera. Raises DataError if the folder holds a data
    set and `resume` is False, or one of another format, rate, size or extras.
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
        self._episodes = self._frames = 0
        self._tasks: list[str] = []
        holds = (self.folder / layout.INFO).exists()
        if holds and not resume:
            raise DataError(
                f"{self.folder}: holds a data set already; resume it, or use another folder"
            )
        (self.folder / "meta").mkdir(parents=True, exist_ok=True)
        self._lock = take_lock(self.folder / LOCK, self.folder)
        try:
            self._resume(read_json(self.folder / layout.INFO) if holds else {})
        except BaseException:
            self._lock.close()
            raise

    def __len__(self) -> int:
        """Return the number of episodes, including earlier runs."""
        return self._episodes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other writers use the folder."""
        if not self._lock.closed:
            self._lock.close()
            (self.folder / LOCK).unlink(missing_ok=True)

    def add(self, episode: Episode) -> int:
        """Append the episode and return its number.

        Raises EpisodeError for another fps, image size or extras, DataError if the disk fails; the
        data set then holds all episodes before this one.
        """
        (width, height), extras = layout.Extras.of(episode)
        if (episode.fps, (width, height)) != (self.fps, self.image_size):
            raise EpisodeError(
                f"{episode.source}: has {episode.fps:g} frames/s of {width}×{height}, expected"
                f" {self.fps:g} of {self.image_size[0]}×{self.image_size[1]} for {self.folder}"
            )
        if extras != self.extras:
            raise EpisodeError(
                f"{episode.source}: has {extras}, expected {self.extras} for {self.folder}"
            )
        number = self._episodes
        try:
            self._write(episode, number)
        except (OSError, av.FFmpegError) as error:
            raise DataError(
                f"{self.folder}: episode {number} cannot be written ({why(error)}); free space or"
                f" check the disk and resume: the {number} episodes so far are kept"
            ) from error
        return number

    def _write(self, episode: Episode, number: int) -> None:
        place = {"episode_chunk": number // v21.CHUNK_EPISODES, "episode_index": number}
        for key, view in self._views(episode).items():
            film = self.folder / VIDEO_PATH.format(video_key=key, **place)
            write_whole(film, partial(_write_bytes, video.encode(view)))
        is_new = episode.instruction not in self._tasks
        tasks = [*self._tasks, episode.instruction] if is_new else self._tasks
        table, stats = self._table(episode, number, tasks.index(episode.instruction))
        layout.write_table(self.folder / DATA_PATH.format(**place), table)
        if is_new:
            line = {"task_index": len(tasks) - 1, "task": episode.instruction}
            self._append(v21.TASKS, line)
        row = {
            "episode_index": number,
            "tasks": [episode.instruction],
            "length": len(episode),
            "success": episode.success,
            "seed": episode.seed,
            "source": episode.source,
        }
        self._append(v21.EPISODES, row)
        self._append(v21.EPISODES_STATS, {"episode_index": number, "stats": stats})
        episodes, frames = number + 1, self._frames + len(episode)
        write_json(self.folder / layout.INFO, self._info(episodes, frames, len(tasks)))
        self._episodes, self._frames, self._tasks = episodes, frames, tasks

    def _views(self, episode: Episode) -> dict[str, Episode]:
        """Return the episode as each camera sees it, by feature."""
        names = (None, *self.extras.cameras)
        return {
            key: episode if name is None else episode.seen_by(name)
            for key, name in zip(self.extras.keys, names, strict=True)
        }

    def _table(
        self, episode: Episode, number: int, task: int
    ) -> tuple[pa.Table, dict[str, dict[str, Any]]]:
        """Return the frames of one episode, and its statistics."""
        steps = np.arange(len(episode))
        columns: dict[str, np.ndarray[Any, Any]] = {
            layout.ACTION: episode.action,
            layout.STATE: episode.state,
            "timestamp": (steps / self.fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(len(episode), number),
            "index": self._frames + steps,
            "task_index": np.full(len(episode), task),
        }
        if episode.intervention is not None:
            columns[layout.INTERVENTION] = episode.intervention
        arrays = [
            pa.array(values)
            if values.ndim == 1
            else pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), DOF)
            for values in columns.values()
        ]
        found = {key: image_stats(view) for key, view in self._views(episode).items()} | {
            name: vector_stats(values.reshape(len(episode), -1)) for name, values in columns.items()
        }
        stats = {
            feature: {name: one[name].tolist() for name in STATS} for feature, one in found.items()
        }
        return pa.table(arrays, schema=self.extras.frame_schema), stats

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        path = self.folder / name
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        sync(path)

    def _resume(self, info: Mapping[str, Any]) -> None:
        """Continue after the episodes that `info` counts; lines beyond them are removed."""
        fps = layout.json_number(self.fps)
        for name, value in (("codebase_version", v21.VERSION), ("fps", fps)):
            if info and info.get(name) != value:
                raise DataError(
                    f"{self.folder}: {name} is {quoted(info.get(name))}, expected {quoted(value)}"
                    " as in the new episodes; use another folder"
                )
        if info and info.get("features") != self._features:
            raise DataError(
                f"{self.folder}: its features differ from those of the new episodes; use another"
                " folder"
            )
        self._episodes = int(info.get("total_episodes", 0))
        self._frames = int(info.get("total_frames", 0))
        tasks = int(info.get("total_tasks", 0))
        counts = {
            v21.TASKS: tasks,
            v21.EPISODES: self._episodes,
            v21.EPISODES_STATS: self._episodes,
        }
        for name, count in counts.items():
            path = self.folder / name
            lines = path.read_text(encoding="utf-8").splitlines(True) if path.exists() else []
            if len(lines) < count:
                raise DataError(
                    f"{path}: has {len(lines)} lines, info.json counts {count}; convert again into"
                    " another folder"
                )
            content = "".join(lines[:count]).encode()
            write_whole(path, partial(_write_bytes, content))
        self._tasks = list(v21.read_tasks(self.folder))

    def _info(self, episodes: int, frames: int, tasks: int) -> dict[str, Any]:
        return {
            "codebase_version": v21.VERSION,
            "robot_type": "crane_x7",
            "total_episodes": episodes,
            "total_frames": frames,
            "total_tasks": tasks,
            "total_videos": episodes * len(self.extras.keys),
            "total_chunks": 1 + (episodes - 1) // v21.CHUNK_EPISODES,
            "chunks_size": v21.CHUNK_EPISODES,
            "fps": layout.json_number(self.fps),
            "splits": {"train": f"0:{episodes}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": self._features,
        }


def _write_bytes(content: bytes, path: Path) -> None:
    path.write_bytes(content)
