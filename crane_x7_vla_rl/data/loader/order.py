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

    def __init__(
        self,
        lengths: npt.ArrayLike,
        seed: int,
        *,
        shuffle: bool = True,
        weights: npt.NDArray[np.float64] | None = None,
    ) -> None:
        """`weights`: how often each frame is in an epoch, see selection.py; None: once."""
        self._ends = np.cumsum(np.asarray(lengths, dtype=np.int64))
        self.frames = int(self._ends[-1]) if len(self._ends) else 0
        """Frames in an epoch; one that is used twice counts twice."""
        self.fingerprint = zlib.crc32(self._ends.tobytes())
        """Differs if the episodes, their lengths or weights do."""
        self._whole: Integers | None = None
        """With weights: the frames of every epoch, each as often as it is surely used."""
        if weights is not None:
            whole = np.floor(weights).astype(np.int64)
            self._whole = np.repeat(np.arange(len(weights)), whole)
            self._parts = np.flatnonzero(weights > whole)
            """Frames that some epochs use an additional time, all with the same probability."""
            self._parts_used = round(float((weights - whole).sum()))
            self.frames = max(len(self._whole) + self._parts_used, 1)
            self.fingerprint = zlib.crc32(weights.tobytes(), self.fingerprint)
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
        if not self._shuffle and self._whole is None:
            return np.arange(self.frames)
        with self._lock:
            found = self._epochs.pop(epoch, None)
            if found is None:
                found = self._permuted(np.random.default_rng([self._seed, epoch]))
            self._epochs[epoch] = found
            if len(self._epochs) > EPOCHS_KEPT:
                self._epochs.popitem(last=False)
        return found

    def _permuted(self, generator: np.random.Generator) -> Integers:
        if self._whole is None:
            return generator.permutation(self.frames)
        parts = generator.permutation(self._parts)[: self.frames - len(self._whole)]
        numbers = np.concatenate([self._whole, parts])
        return generator.permutation(numbers) if self._shuffle else np.sort(numbers)
