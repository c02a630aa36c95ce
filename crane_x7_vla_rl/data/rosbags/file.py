"""One ROS 2 bag. Folder with `metadata.yaml`, or a single `.db3` or `.mcap` → topics and messages.

Messages are in the order of their receipt. The package `rosbags` reads both formats; every failure
with a damaged bag becomes one RecordingError that names the bag.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import apsw
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader, ReaderError
from rosbags.rosbag2.reader import DirectoryReader
from rosbags.rosbag2.storage_mcap import McapReader
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, TypesysError, get_typestore

from crane_x7_vla_rl.data.files import find_files
from crane_x7_vla_rl.data.reader_options import RecordingError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

METADATA: Final = "metadata.yaml"
SQLITE_MAGIC: Final = b"SQLite format 3\0"
STORAGES: Final = (".db3", ".mcap")
PART: Final = re.compile(r"(.+)_\d+")

DAMAGE: Final = (
    AnyReaderError, ReaderError, SerdeError, TypesysError, apsw.Error, struct.error, OSError,
    EOFError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError,
    AssertionError, zstd.ZstdError,
)  # fmt: skip
"""Errors that `rosbags`, SQLite and the decompressors raise for damaged bytes."""


@dataclass(frozen=True)
class Received:
    """One message of a bag."""

    topic: str
    time_ns: int
    """When the recorder received it."""
    message: Any
    """Object with the fields of its ROS type."""


class _Mcap(McapReader):  # type: ignore[misc]
    """Finds every message of a file with an incomplete index.

    Writers may omit the message indexes, the counts, or the whole summary. `rosbags` treats a chunk
    without message indexes as empty, and refuses to scan messages that are not in order of time,
    although callers sort them.
    """

    statistics: Any

    def read_index(self) -> None:
        super().read_index()
        if not (self.connections and all(chunk.channel_count for chunk in self.chunks)):
            self.chunks.clear()
        if not (self.connections and self.statistics and self.statistics.channel_message_counts):
            self.statistics = None  # counted again: from the chunks' indexes, or by a scan

    def messages(
        self, connections: Collection[Connection], start: int | None = None, stop: int | None = None
    ) -> Generator[tuple[Connection, int, bytes], None, None]:
        read = super().messages if self.chunks else self.messages_scan
        yield from read(connections, start, stop)


class _BagFolder(DirectoryReader):  # type: ignore[misc]
    STORAGE_PLUGINS: ClassVar = {**DirectoryReader.STORAGE_PLUGINS, "mcap": _Mcap}


class _Bag(Reader):  # type: ignore[misc]
    STORAGE_PLUGINS: ClassVar = {**Reader.STORAGE_PLUGINS, "dir": _BagFolder, ".mcap": _Mcap}


def find_bags(path: Path) -> list[Path]:
    """Return the bags in a folder, sorted; raises RecordingError if there are none, or if the file
    is missing that orders the parts of a bag."""
    if path.is_file() or (path / METADATA).exists():
        return [path]
    files = find_files(path, f"**/{METADATA}", *(f"**/*{storage}" for storage in STORAGES))
    folders = [file.parent for file in files if file.name == METADATA]
    lone = [file for file in files if file.parent not in folders]
    if not folders and not lone:
        raise RecordingError(
            str(path), "bags", f"are missing; expected folders with {METADATA}, or {STORAGES} files"
        )
    parts: dict[Path, Path] = {}
    for file in lone:
        match = PART.fullmatch(file.stem)
        first = parts.setdefault(file.with_name(match[1] if match else file.name), file)
        if first is not file:
            raise RecordingError(
                str(file.parent), METADATA, f"is missing, so {first.name} and {file.name} may be"
                " one bag or two; run `ros2 bag reindex`, or give each its own folder",
            )  # fmt: skip
    return sorted([*folders, *lone])


def read_topics(path: Path) -> dict[str, str]:
    """Return topic → ROS type of the bag at `path`; raises RecordingError if it is damaged."""
    reader = _open(path)
    try:
        return {connection.topic: connection.msgtype for connection in reader.connections}
    finally:
        reader.close()


def read_messages(path: Path, topics: Collection[str]) -> Iterator[Received]:
    """Yield the messages on `topics`; raises RecordingError if the bag is damaged."""
    reader = _open(path)
    try:
        wanted = [connection for connection in reader.connections if connection.topic in topics]
        stream = reader.messages(connections=wanted) if wanted else iter(())
        count = 0
        while True:
            try:
                connection, time_ns, raw = next(stream)
                message = reader.deserialize(raw, connection.msgtype)
            except StopIteration:
                break
            except DAMAGE as error:
                raise _damaged(path, f"after {count} messages", error) from error
            count += 1
            yield Received(connection.topic, time_ns, message)
        expected = sum(connection.msgcount for connection in wanted)
        if count != expected:
            raise RecordingError(
                str(path), "bag", f"holds {count} messages on {', '.join(sorted(topics))}, but"
                f" the bag's metadata counts {expected}: a part of it is lost",
            )  # fmt: skip
    finally:
        reader.close()


def _open(path: Path) -> AnyReader:
    for file in [path] if path.is_file() else path.glob("[!.]*.db3"):
        if file.suffix == ".db3":
            _check_size(file)
    try:
        reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))
        reader.readers = [_Bag(path)]
        reader.open()
    except DAMAGE as error:
        raise _damaged(path, "when it is opened", error) from error
    return reader


def _check_size(file: Path) -> None:
    """Refuse an SQLite file that is shorter than its header says; SQLite may not detect it.

    Source: sqlite.org/fileformat.html, "The Database Header".
    """
    with file.open("rb") as stream:
        header = stream.read(100)
    if len(header) < 100 or not header.startswith(SQLITE_MAGIC):
        raise _damaged(file, "when it is opened", ReaderError("it is not an SQLite file"))
    page_size = int.from_bytes(header[16:18], "big")
    page_size = 65536 if page_size == 1 else page_size
    counted = header[24:28] == header[92:96]
    expected = page_size * int.from_bytes(header[28:32], "big") if counted else 0
    if file.stat().st_size < expected:
        short = f"it has {file.stat().st_size} of {expected} bytes"
        raise _damaged(file, "when it is opened", ReaderError(short))


def _damaged(path: Path, when: str, error: Exception) -> RecordingError:
    return RecordingError(
        str(path), "bag", f"cannot be read {when} ({type(error).__name__}: {error}); a truncated"
 " recording can often be repaired: `mcap recover` or `sqlite3 .recover`, then"
        " `ros2 bag reindex`",
    )  # fmt: skip
