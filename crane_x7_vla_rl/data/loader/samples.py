"""One training sample: image, joints and the targets after it. (episode, frame) → `Sample`.

Prepared images are cached up to a limit, so a small data set is decoded once. An unreadable frame
raises, or is replaced by another that depends only on the data.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.data.episode import DataError, Episode
from crane_x7_vla_rl.data.loader.selection import Selection
from crane_x7_vla_rl.data.source import EpisodeSource
from crane_x7_vla_rl.types import Image

logger = logging.getLogger(__name__)

EPISODES_KEPT: Final = 64
"""Open episodes; one of a video needs little memory, one of a log holds its encoded images."""
BROKEN_SHARE: Final = 0.1
"""With more broken episodes than this, the whole data set counts as damaged."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One frame to learn from."""

    image: Image
    """(H, W, 3) uint8 RGB."""
    state: npt.NDArray[np.float32]
    """(8,) rad."""
    actions: npt.NDArray[np.float32]
    """(T, 8) rad: the frame's target and those after it; the last is repeated at the end of the
    episode, and where frames follow that are not selected."""
    instruction: str
    episode: int
    frame: int


class Samples:
    """Frames of a source by episode and frame; safe to use from several threads."""

    def __init__(
        self,
        source: EpisodeSource,
        chunk_steps: int,
        cache_bytes: int,
        corrupt: Literal["raise", "skip"],
        prepare: Callable[[Image], Image] | None = None,
        transform: Callable[[Image, int], Image] | None = None,
        selection: Selection | None = None,
    ) -> None:
        """`selection`: the frames that are read; None: all."""
        self._selection = selection
        self._source, self._chunk_steps, self._corrupt = source, chunk_steps, corrupt
        self._prepare, self._transform = prepare, transform
        self._lengths = source.lengths
        self._room = cache_bytes
        self._images: dict[tuple[int, int], Image] = {}
        self._episodes: OrderedDict[int, Episode] = OrderedDict()
        self._lock = threading.Lock()
        self.broken: dict[int, str] = {}
        """Problems by episode, as they are found."""

    def read(self, episode: int, frame: int, place: int) -> Sample:
        """Return the sample; `place` in the order of training is passed to `transform`.

        With corrupt="skip", a frame that cannot be read is replaced by one of the next episode.
        Otherwise it raises DataError, which names file and episode.
        """
        count = len(self._source)
        for step in range(count):
            number = (episode + step) % count
            t = frame if step == 0 else self._stand_in(number, frame)
            if t is None:
                continue
            try:
                return self._read(number, t, place)
            except DataError as error:
                if self._corrupt == "raise":
                    raise
                self._note(number, error)
        raise DataError(f"{self._source.name}: no episode can be read")

    def _read(self, number: int, t: int, place: int) -> Sample:
        episode = self._episode(number)
        image = self._image(episode, number, t)
        if self._transform is not None:
            image = self._transform(image, place)
        last = len(episode) - 1
        if self._selection is not None:
            last = self._selection.last(number, t)
        steps = np.minimum(np.arange(t, t + self._chunk_steps), last)
        actions = episode.action[steps]
        return Sample(image, episode.state[t], actions, episode.instruction, number, t)

    def _stand_in(self, number: int, frame: int) -> int | None:
        """Return the frame of episode `number` that replaces `frame` of a broken one; None if none
        of its frames is selected."""
        if self._selection is None:
            return frame % int(self._lengths[number])
        return self._selection.stand_in(number, frame)

    def _episode(self, number: int) -> Episode:
        with self._lock:
            found = self._episodes.get(number)
            if found is not None:
                self._episodes.move_to_end(number)
                return found
        episode = self._source[number]
        if len(episode) != self._lengths[number]:
            raise episode.error(
                "length",
                f"is {len(episode)}, expected {self._lengths[number]} as in the data set's index",
            )
        with self._lock:
            self._episodes[number] = episode
            if len(self._episodes) > EPISODES_KEPT:
                self._episodes.popitem(last=False)
        return episode

    def _image(self, episode: Episode, number: int, t: int) -> Image:
        found = self._images.get((number, t))
        if found is not None:
            return found
        image = decoded = episode.image(t)
        if self._prepare is not None:
            image = self._prepare(decoded)
            if image is not decoded and np.may_share_memory(image, decoded):
                image = image.copy()  # otherwise the part would keep the whole in memory
        with self._lock:
            if image.nbytes <= self._room and (number, t) not in self._images:
                image.setflags(write=False)
                self._images[number, t] = image
                self._room -= image.nbytes
        return image

    def _note(self, number: int, error: DataError) -> None:
        with self._lock:
            if number in self.broken:
                return
            self.broken[number] = str(error)
            count, total = len(self.broken), len(self._source)
        logger.warning("skipped: %s", error)
        if count > max(1, BROKEN_SHARE * total):
            raise DataError(
                f"{self._source.name}: {count} of {total} episodes are broken, the last one:"
                f" {error}; the data set is damaged: copy it again"
            ) from error
