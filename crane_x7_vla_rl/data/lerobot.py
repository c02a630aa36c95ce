"""LeRobotDataset v3 on disk: written episode by episode, read back as an `EpisodeSource`."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from crane_x7_vla_rl.data.episode import Episode
from crane_x7_vla_rl.data.source import EpisodeSource


class LeRobotWriter:
    """Appends episodes; each is safe on disk when `add` returns, and in the data set after `close`.

    `image_size` is (width, height). Raises DataError where the folder holds a data set and `resume`
    is False, or one of another fps or size.
    """

    def __init__(
        self, folder: str | Path, fps: float, image_size: tuple[int, int], *, resume: bool = False
    ) -> None:
        raise NotImplementedError

    def __len__(self) -> int:
        """Return the number of episodes, those of earlier runs included."""
        raise NotImplementedError

    @property
    def seeds(self) -> frozenset[int]:
        """Seeds of all episodes so far, those of earlier runs included."""
        raise NotImplementedError

    def add(self, episode: Episode) -> int:
        """Append the episode and return its number."""
        raise NotImplementedError

    def close(self) -> None:
        """Publish what is left; the data set is complete for every reader."""
        raise NotImplementedError

    def __enter__(self) -> LeRobotWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_lerobot(folder_or_repo_id: str | Path, *, camera: str | None = None) -> EpisodeSource:
    """Return the episodes of a LeRobotDataset v3, local or on the Hub (owner/name[@revision])."""
    raise NotImplementedError
