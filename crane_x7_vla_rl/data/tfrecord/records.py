"""Read TFRecord files without TensorFlow. File → offsets, and bytes with checksums verified.

A file is a sequence of records, each a length (8 bytes, little-endian), the length's masked CRC32C,
the bytes, and the bytes' masked CRC32C; the whole file may be gzipped. No file stays open between
reads, so a `RecordFile` can be passed to other processes and threads. Format: TensorFlow's guide
"TFRecord and tf.train.Example".
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, cast

import google_crc32c
import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.data.reader_options import RecordingError

LENGTH: Final = struct.Struct("<QI")
CHECKSUM: Final = struct.Struct("<I")
MASK_DELTA: Final = 0xA282EAD8
GZIP_MAGIC: Final = b"\x1f\x8b"


@dataclass(frozen=True, eq=False)
class RecordFile:
    """The index of one TFRecord file."""

    path: Path
    gzipped: bool
    offsets: npt.NDArray[np.int64]
    """(N,) offset of each record's bytes, after decompression."""
    sizes: npt.NDArray[np.int64]
    """(N,) number of bytes of each record."""

    def __len__(self) -> int:
        return len(self.offsets)

    def where(self, index: int) -> str:
        """Return the name of a record in errors."""
        return record_name(self.path, index)

    def read(self, index: int) -> bytes:
        """Return the bytes of one record; a gzipped file is read from its start.

        Raises RecordingError if the file is shorter than its index or the checksum is wrong.
        """
        with self._open() as stream:
            return self._read_from(stream, index)

    def read_each(self) -> Iterator[bytes | RecordingError]:
        """Yield the bytes of all records in order, or the problem of a damaged one."""
        with self._open() as stream:
            for index in range(len(self)):
                try:
                    yield self._read_from(stream, index)
                except RecordingError as error:
                    yield error

    def read_all(self) -> Iterator[bytes]:
        """Yield the bytes of all records in order; raises as `read` does."""
        for content in self.read_each():
            if isinstance(content, RecordingError):
                raise content
            yield content

    def span(self, index: int, record: bytes, part: bytes, begin: int = 0) -> tuple[int, int]:
        """Return offset and size in the file of `part` of record `index`.

        The search starts at `begin` of the record; raises ValueError if it is not found.
        """
        return int(self.offsets[index]) + record.index(part, begin), len(part)

    def _open(self) -> BinaryIO:
        return cast(BinaryIO, gzip.open(self.path) if self.gzipped else self.path.open("rb"))

    def _read_from(self, stream: BinaryIO, index: int) -> bytes:
        try:
            stream.seek(int(self.offsets[index]))
            record = _read_exactly(stream, int(self.sizes[index]), self.path, index)
            (checksum,) = CHECKSUM.unpack(_read_exactly(stream, 4, self.path, index))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise RecordingError(self.where(index), "gzip", f"is damaged: {error}") from error
        if masked_crc32c(record) != checksum:
            raise RecordingError(
                self.where(index),
                "checksum",
                f"is {checksum:#010x}, but its {len(record)} bytes have"
                f" {masked_crc32c(record):#010x}: the file is damaged; copy it again",
            )
        return record


def record_name(path: Path, index: int) -> str:
    """Return the name in errors of record `index` of `path`, counted from 0."""
    return f"{path}, record {index}"


def masked_crc32c(content: bytes) -> int:
    """Return the CRC32C of `content`, rotated and shifted as TFRecord stores it."""
    crc: int = google_crc32c.value(content)
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF


def index_records(path: Path) -> RecordFile:
    """Return the index of the TFRecord file at `path`; only the lengths are read.

    Records' checksums are compared when they are read. Raises RecordingError naming the file and
    the record if it is not a TFRecord, is empty, or ends within a record.
    """
    with path.open("rb") as stream:
        first = stream.read(LENGTH.size)
    if not first:
        raise RecordingError(str(path), "records", "is empty, expected at least one record")
    gzipped = not _is_length(first) and first.startswith(GZIP_MAGIC)
    if not gzipped and len(first) == LENGTH.size and not _is_length(first):
        raise RecordingError(
            record_name(path, 0),
            "length",
            f"{first[:8].hex(' ')} does not have the checksum {first[8:].hex(' ')}: the file is"
            " damaged, or not a TFRecord file, gzipped or not",
        )
    try:
        # Unbuffered: every seek over a record would discard a buffer.
        with gzip.open(path) if gzipped else path.open("rb", buffering=0) as stream:
            offsets, sizes = _walk(
                cast(BinaryIO, stream), path, None if gzipped else path.stat().st_size
            )
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RecordingError(str(path), "gzip", f"is damaged or truncated: {error}") from error
    return RecordFile(path, gzipped, np.array(offsets, np.int64), np.array(sizes, np.int64))


def _walk(stream: BinaryIO, path: Path, file_size: int | None) -> tuple[list[int], list[int]]:
    offsets: list[int] = []
    sizes: list[int] = []
    at = 0
    while header := stream.read(LENGTH.size):
        index = len(offsets)
        header += b"" if len(header) == LENGTH.size else stream.read(LENGTH.size - len(header))
        if len(header) < LENGTH.size:
            raise _cut_off(path, index, LENGTH.size, len(header))
        if not _is_length(header):
            raise RecordingError(
                record_name(path, index),
                "length",
                f"{header[:8].hex(' ')} does not have the checksum {header[8:].hex(' ')}: the file"
                f" is damaged from byte {at} on; the {index} records before it are complete",
            )
        (size, _) = LENGTH.unpack(header)
        at += LENGTH.size
        end = at + size + CHECKSUM.size
        if file_size is not None and end > file_size:
            raise _cut_off(path, index, size + CHECKSUM.size, file_size - at)
        if stream.seek(end) != end:
            raise _cut_off(path, index, size + CHECKSUM.size, stream.tell() - at)
        offsets.append(at)
        sizes.append(size)
        at = end
    return offsets, sizes


def _is_length(header: bytes) -> bool:
    if len(header) < LENGTH.size:
        return False
    _, checksum = LENGTH.unpack(header)
    return bool(masked_crc32c(header[:8]) == checksum)


def _read_exactly(stream: BinaryIO, size: int, path: Path, index: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise _cut_off(path, index, size, len(content))
    return content


def _cut_off(path: Path, index: int, expected: int, found: int) -> RecordingError:
    return RecordingError(
        record_name(path, index),
        "bytes",
        f"the file ends after {found} of {expected}, so its recording or copy was interrupted;"
        f" the {index} records before it are complete",
    )
