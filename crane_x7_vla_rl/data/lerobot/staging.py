"""Episodes that are safe on disk but not yet published. `Episode` → one folder, written whole.

`Staged` holds the encoded video and all other data for publishing, so images are decoded once.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.data.episode import DataError, Episode
from crane_x7_vla_rl.data.files import PARTIAL, read_json, sync
from crane_x7_vla_rl.data.lerobot.stats import image_stats
from crane_x7_vla_rl.data.lerobot.video import encode
from crane_x7_vla_rl.robot import DOF

VIDEO: Final = "video.mp4"
JOINTS: Final = "joints.npy"
ABOUT: Final = "episode.json"


@dataclass(frozen=True)
class Staged:
    """One episode in the staging folder."""

    folder: Path
    about: dict[str, Any]
    """length, instruction, success, seed, source, fps, image_size (width, height), and the
    images' statistics as lists."""

    @property
    def length(self) -> int:
        """Frames."""
        return int(self.about["length"])

    @property
    def video(self) -> Path:
        """Its frames as MP4, starting at 0 s."""
        return self.folder / VIDEO

    def joints(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return state and action, (T, 8) each."""
        both = np.load(self.folder / JOINTS)
        return both[:, :DOF], both[:, DOF:]

    def pictures(self) -> dict[str, npt.NDArray[np.float64]]:
        """Return the statistics of its images."""
        return {name: np.array(value) for name, value in self.about["pictures"].items()}


def stage(episode: Episode, folder: Path) -> Staged:
    """Write the episode into `folder`, synced and whole; raises OSError if the disk fails."""
    height, width, _ = episode.image(0).shape
    about = {
        "length": len(episode),
        "fps": episode.fps,
        "image_size": [width, height],
        "instruction": episode.instruction,
        "success": episode.success,
        "seed": episode.seed,
        "source": episode.source,
        "pictures": {name: value.tolist() for name, value in image_stats(episode).items()},
    }
    content = encode(episode)
    partial = folder.with_name(folder.name + PARTIAL)
    partial.mkdir()
    try:
        (partial / VIDEO).write_bytes(content)
        np.save(partial / JOINTS, np.hstack([episode.state, episode.action]))
        (partial / ABOUT).write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
        for path in (*partial.iterdir(), partial):
            sync(path)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # the next writer removes the rest
        raise
    sync(folder.parent)
    return Staged(folder, about)


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
