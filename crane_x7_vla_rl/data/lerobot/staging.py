"""Episodes that are safe on disk but not yet published. `Episode` → one folder, written whole.

`Staged` holds the encoded video and all other data for publishing, so images are decoded once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.data.episode import DataError, Episode
from crane_x7_vla_rl.data.files import PARTIAL, read_json, sync
from crane_x7_vla_rl.data.lerobot.layout import Extras
from crane_x7_vla_rl.data.lerobot.stats import image_stats
from crane_x7_vla_rl.data.lerobot.video import encode
from crane_x7_vla_rl.robot import JOINT_NAMES

VIDEO: Final = "video.mp4"
OTHER_VIDEO: Final = "video-{camera}.mp4"
JOINTS: Final = "joints.npy"
ABOUT: Final = "episode.json"


@dataclass(frozen=True)
class Staged:
    """One episode in the staging folder."""

    folder: Path
    about: dict[str, Any]
    """length, instruction, success, seed, source, fps, image_size (width, height), the images'
    statistics as lists, `others`: image_size and statistics of each further camera, and `joints`,
    if they are another robot's."""

    @property
    def length(self) -> int:
        """Frames."""
        return int(self.about["length"])

    @property
    def cameras(self) -> tuple[str | None, ...]:
        """None for the base camera, then the names of the others."""
        return None, *self.about.get("others", {})

    def video(self, camera: str | None = None) -> Path:
        """Return the frames of a camera as MP4, starting at 0 s."""
        return self.folder / (VIDEO if camera is None else OTHER_VIDEO.format(camera=camera))

    @property
    def video_bytes(self) -> int:
        """Size of all its videos."""
        return sum(self.video(camera).stat().st_size for camera in self.cameras)

    def joints(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return state and action, (T, 8) each, or as many columns as the robot has joints."""
        both, dof = np.load(self.folder / JOINTS), len(self.names)
        return both[:, :dof], both[:, dof : 2 * dof]

    @property
    def names(self) -> tuple[str, ...]:
        """The joints."""
        return tuple(self.about.get("joints", JOINT_NAMES))

    def intervention(self) -> npt.NDArray[np.bool_] | None:
        """Return (T,) which frames are interventions; None if that was not recorded."""
        columns, both = np.load(self.folder / JOINTS), 2 * len(self.names)
        return columns[:, both] > 0 if columns.shape[1] > both else None

    def pictures(self, camera: str | None = None) -> dict[str, npt.NDArray[np.float64]]:
        """Return the statistics of a camera's images."""
        about = self.about if camera is None else self.about["others"][camera]
        return {name: np.array(value) for name, value in about["pictures"].items()}

    def kind(self) -> tuple[float, tuple[int, int], Extras]:
        """Return the frame rate, the base camera's (width, height), and what else it has."""
        others = self.about.get("others", {})
        sizes = {name: _size(one["image_size"]) for name, one in others.items()}
        has_marks = self.intervention() is not None
        return (
            self.about["fps"],
            _size(self.about["image_size"]),
            Extras(sizes, has_marks, self.names),
        )


def stage(episode: Episode, folder: Path) -> Staged:
    """Write the episode into `folder`, synced and whole; raises OSError if the disk fails."""
    views = {name: episode.seen_by(name) for name in episode.others}
    about = {
        "length": len(episode),
        "fps": episode.fps,
        "instruction": episode.instruction,
        "success": episode.success,
        "seed": episode.seed,
        "source": episode.source,
        **_about_images(episode),
        "others": {name: _about_images(view) for name, view in views.items()},
    }
    if episode.joints != JOINT_NAMES:
        about["joints"] = list(episode.joints)
    films = {VIDEO: encode(episode)}
    films |= {OTHER_VIDEO.format(camera=name): encode(view) for name, view in views.items()}
    columns = [episode.state, episode.action]
    if episode.intervention is not None:
        columns.append(episode.intervention[:, None].astype(np.float32))
    partial = folder.with_name(folder.name + PARTIAL)
    partial.mkdir()
    try:
        for name, content in films.items():
            (partial / name).write_bytes(content)
        np.save(partial / JOINTS, np.hstack(columns))
        (partial / ABOUT).write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
        for path in (*partial.iterdir(), partial):
            sync(path)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # the next writer removes the rest
        raise
    sync(folder.parent)
    return Staged(folder, about)


def _about_images(episode: Episode) -> dict[str, Any]:
    height, width, _ = episode.image(0).shape
    stats = {name: value.tolist() for name, value in image_stats(episode).items()}
    return {"image_size": [width, height], "pictures": stats}


def _size(values: Sequence[int]) -> tuple[int, int]:
    width, height = values
    return width, height


def read_staged(staging: Path, published: int) -> list[Staged]:
    """Return episodes staged after the `published` ones; other staged folders are removed."""
    staged: list[Staged] = []
    for folder in sorted(staging.glob("episode-*")):
        if folder.suffix == PARTIAL or _number(folder) < published:
            shutil.rmtree(folder)
            continue
        if _number(folder) != published + len(staged):
            raise DataError(
                f"{folder}: episode {published + len(staged)} is missing; delete the folders after"
                " it and resume"
            )
        staged.append(Staged(folder, read_json(folder / ABOUT)))
    return staged


def folder_of(staging: Path, number: int) -> Path:
    """Return the staging folder of episode `number`."""
    return staging / f"episode-{number:08d}"


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("episode-"))
