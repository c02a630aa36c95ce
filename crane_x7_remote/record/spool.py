"""Images of the episode that is being recorded, on the disk. Bytes → places → bytes again.

A minute of two cameras is 100 MB, so they do not wait in memory. The file has no name: whatever
ends this process, nothing of it is left.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload


@dataclass(frozen=True)
class Place:
    """Where an image is in the file."""

    offset: int
    length: int


class Spool:
    """A file of images; appended by one thread, read by any."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError if the folder cannot be written."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed by `close`
        self._end = 0

    def put(self, content: bytes) -> Place:
        """Append an image; raises OSError, such as for a full disk."""
        place, rest = Place(self._end, len(content)), memoryview(content)
        while rest:
            rest = rest[os.pwrite(self._file.fileno(), rest, self._end) :]
            self._end = place.offset + place.length - len(rest)
        return place

    def get(self, place: Place) -> bytes:
        """Return an image."""
        return os.pread(self._file.fileno(), place.length, place.offset)

    def close(self) -> None:
        """Delete the file."""
        self._file.close()


@dataclass(frozen=True)
class SpooledImages(Sequence[bytes]):
    """The images of an episode; each is read when it is needed."""

    spool: Spool
    places: Sequence[Place]

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, t: int) -> bytes: ...
    @overload
    def __getitem__(self, t: slice) -> Sequence[bytes]: ...

    def __getitem__(self, t: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(t, slice):
            return [self.spool.get(place) for place in self.places[t]]
        return self.spool.get(self.places[t])
