"""Images that stay in their TFRecord file. Offsets → encoded images, read one at a time.

An episode holds tens of megabytes of images, and training reads them in random order: the whole
file is read once, with all checksums, and later only at an image's offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.data.episode import decode_image
from crane_x7_vla_rl.data.reader_options import RecordingError
from crane_x7_vla_rl.data.tfrecord.records import RecordFile
from crane_x7_vla_rl.file_errors import why
from crane_x7_vla_rl.types import Image


class FilePictures(Sequence[bytes]):
    """Encoded images by their place in a file; opens it for each, so threads may share this."""

    def __init__(self, path: Path, places: npt.NDArray[np.int64]) -> None:
        """`places` is (T, 2): offset and size in bytes."""
        self._path, self._places = path, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        offset, size = (int(value) for value in self._places[index])
        try:
            with self._path.open("rb", buffering=0) as stream:
                stream.seek(offset)
                content = stream.read(size)
        except OSError as error:
            raise RecordingError(
                str(self._path), f"image {index}", f"cannot be read: {why(error)}"
            ) from error
        if len(content) < size:
            raise RecordingError(
                str(self._path),
                f"image {index}",
                "is missing: the file is shorter than at the first read",
            )
        return content


class Swapped(Sequence[Image]):
    """Encoded images with red and blue exchanged."""

    def __init__(self, images: Sequence[bytes]) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Image]: ...
    def __getitem__(self, index: int | slice) -> Image | Sequence[Image]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        return np.ascontiguousarray(decode_image(self._images[index])[:, :, ::-1])


def places_of(
    images: Sequence[bytes], file: RecordFile, record: int | None, contents: Sequence[bytes]
) -> npt.NDArray[np.int64]:
    """Return (T, 2) offset and size in the file of each of an episode's images.

    `contents` are the bytes of `record`, or, if that is None, of every record: one per image.
    """
    places = np.empty((len(images), 2), np.int64)
    begin = 0
    for step, image in enumerate(images):
        if record is None:
            places[step] = file.span(step, contents[step], image)
            continue
        places[step] = file.span(record, contents[0], image, begin)
        begin = int(places[step, 0] - file.offsets[record]) + len(image)
    return places
