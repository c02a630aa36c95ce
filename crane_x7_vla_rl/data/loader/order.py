"""The order of training frames. Episode lengths, a seed and places → (episode, frame) pairs.

An endless sequence; each epoch is a new permutation of all frames. It has no state: every place is
computed directly.
"""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from typing import Final

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

EPOCHS_KEPT: Final = 2
"""Permutations in memory, 8 bytes per frame each: a batch may span two epochs."""


class FrameOrder:
    """The order of the frames; `shuffle=False`: that of the episodes."""

    def __init__(self, lengths: npt.ArrayLike, seed: int, *, shuffle: bool = True) -> None:
        self._ends = np.cumsum(np.asarray(lengths, dtype=np.int64))
        self.frames = int(self._ends[-1]) if len(self._ends) else 0
        """Frames in an epoch."""
        self.fingerprint = zlib.crc32(self._ends.tobytes())
        """Differs if the episodes or their lengths do."""
        self._seed, self._shuffle = seed, shuffle
        self._epochs: OrderedDict[int, Integers] = OrderedDict()
        self._lock = threading.Lock()

    def at(self, begin: int, count: int) -> tuple[Integers, Integers]:
        """Return episodes (count,) and frames (count,) of the places from `begin` on."""
        places = np.arange(begin, begin + count)
        numbers = np.empty(count, np.int64)
        for epoch in np.unique(places // self.frames):
            inside = places // self.frames == epoch
            numbers[inside] = self._epoch(int(epoch))[places[inside] % self.frames]
        episodes = np.searchsorted(self._ends, numbers, side="right")
        starts = np.where(episodes > 0, self._ends[episodes - 1], 0)
        return episodes, numbers - starts

    def _epoch(self, epoch: int) -> Integers:
        if not self._shuffle:
            return np.arange(self.frames)
        with self._lock:
            found = self._epochs.pop(epoch, None)
            if found is None:
                found = np.random.default_rng([self._seed, epoch]).permutation(self.frames)
            self._epochs[epoch] = found
            if len(self._epochs) > EPOCHS_KEPT:
                self._epochs.popitem(last=False)
        return found
