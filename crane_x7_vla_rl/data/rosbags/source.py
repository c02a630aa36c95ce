"""A folder of ROS 2 bags (.db3, .mcap) → an `EpisodeSource`: one bag, one episode.

Every bag is read once when the folder is opened, to align its topics on one grid of frames; its
images are read again each time an episode is opened. For training, convert to LeRobot first.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.data.episode import DataError, Episode
from crane_x7_vla_rl.data.reader_options import IncompleteError, RecordingError, read_options
from crane_x7_vla_rl.data.rosbags.file import find_bags, read_messages
from crane_x7_vla_rl.data.rosbags.messages import picture
from crane_x7_vla_rl.data.rosbags.options import BagOptions
from crane_x7_vla_rl.data.rosbags.track import Track, read_track
from crane_x7_vla_rl.types import Image


class RosbagSource:
    """Episodes in bags; reading opens and closes its bag, so threads may share this."""

    def __init__(
        self, name: str, tracks: Iterable[Track], options: BagOptions, instruction: str
    ) -> None:
        self._name, self._tracks = name, tuple(tracks)
        self._options, self._instruction = options, instruction

    def __len__(self) -> int:
        return len(self._tracks)

    def __getitem__(self, index: int) -> Episode:
        """Return episode `index`; raises EpisodeError naming bag and topic."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self._name}: episode {index} of {len(self)}")
        track = self._tracks[index]
        words = track.instruction or self._instruction
        if not words.strip():
            raise RecordingError(
                str(track.path), self._options.instruction_topic,
                "has no instruction; set the task with"
                " --instruction",
            )  # fmt: skip
        return Episode(
            images=pictures_of(track, self._options.camera_topic),
            state=track.state,
            action=track.action,
            instruction=words,
            fps=self._options.fps,
            success=None,
            source=str(track.path),
        )

    @property
    def fps(self) -> float:
        return self._options.fps

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.array([len(track.state) for track in self._tracks], dtype=np.int64)

    @property
    def name(self) -> str:
        return self._name

    def where(self, index: int) -> str:
        """Return the bag of episode `index`, for messages."""
        return str(self._tracks[index].path)


def open_rosbags(path: Path, *, instruction: str) -> RosbagSource:
    """Return the episodes of a folder of bags (searched recursively), or of one bag.

    `instruction` is for bags without one. `reader.yaml` next to them may set BagOptions. Raises
    IncompleteError that names every bag and topic with a problem, and DataError if there is no bag
    or `reader.yaml` is invalid.
    """
    options = read_options(path, BagOptions)
    problems: list[DataError] = []
    tracks: list[Track] = []
    for bag in find_bags(path):
        try:
            tracks.append(read_track(bag, options))
        except RecordingError as error:
            problems.append(error)
    problems += _mixed_actions(tracks)
    source = RosbagSource(str(path), tracks, options, instruction)
    if problems:
        raise IncompleteError(str(path), problems, source if tracks else None)
    return source


def _mixed_actions(tracks: list[Track]) -> Iterable[DataError]:
    """Yield a problem for each bag whose actions have another source than the first bag's."""
    for track in tracks[1:]:
        first = tracks[0]
        if track.action_from != first.action_from:
            yield RecordingError(
                str(track.path), "action", f"comes from {track.action_from}, that of"
                f" {first.path} from {first.action_from}; set action_from in reader.yaml",
            )  # fmt: skip


def pictures_of(track: Track, topic: str) -> list[bytes | Image]:
    """Return the T images of a track; raises RecordingError."""
    wanted = set(track.pictures.tolist())
    found: dict[int, bytes | Image] = {}
    for number, received in enumerate(read_messages(track.path, [topic])):
        if number in wanted:
            found[number] = picture(received.message, str(track.path), topic)
    missing = sorted(wanted - found.keys())
    if missing:
        raise RecordingError(
            str(track.path), topic, f"lost image {missing[0]} since the folder was opened"
        )
    return [found[number] for number in track.pictures.tolist()]
