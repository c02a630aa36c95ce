"""SAPIEN's GPU PhysX library: what is wrong with a file, and its installation from an archive.

    python -m crane_x7_vla_rl.physx_library ARCHIVE [FOLDER]

ARCHIVE is `linux-so.zip` of a release of sapien-sim/physx-precompiled, a file or a URL; FOLDER is
where SAPIEN looks, ~/.sapien/physx. Needs Python alone: docker/Dockerfile runs this file before any
package is installed. The exit code is 0 or 1.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import platform
import struct
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Final

NAME: Final = "PhysXGpu_64.dll" if platform.system() == "Windows" else "libPhysXGpu_64.so"
FOLDER: Final = Path(".sapien") / "physx"
"""In the home folder: one folder per version."""
RELEASES: Final = "https://github.com/sapien-sim/physx-precompiled/releases/download"
CHUNK_BYTES: Final = 1 << 20
TIMEOUT_S: Final = 60.0
ELF: Final = b"\x7fELF"
ELF64_HEADER_BYTES: Final = 64


@dataclass(frozen=True)
class Release:
    """One release for x86-64 Linux. It publishes no checksums: these are what two public projects
    independently recorded of its files."""

    version: str
    """As `sapien.physx.version()` says it."""
    archive_sha256: str
    library_sha256: str
    library_bytes: int

    @property
    def url(self) -> str:
        """Address of the archive."""
        return f"{RELEASES}/{self.version}/linux-so.zip"


PINNED: Final = Release(
    version="105.1-physx-5.3.1.patch0",
    archive_sha256="167a01aad7381afef963b89169968c289e7b653880a7a823c116d87ee5c00fc6",
    library_sha256="4c582a16509a71faf5592fe9708586dfcc7ab61ae932eabc1ddd81f290818706",
    library_bytes=236_705_440,
)
"""The release that SAPIEN 3.0.3 needs."""


class LibraryError(Exception):
    """The library cannot be installed; the message says why."""


def problem(path: Path) -> str | None:
    """Return what is wrong with the library at `path`, whose folder is named after its version.

    The pinned version must be the pinned file; of another one, or on another processor, only the
    form is checked.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        others = sorted(found.parent.name for found in path.parent.parent.glob(f"*/{NAME}"))
        return f"{path} is missing" + (f"; found only version {', '.join(others)}" * bool(others))
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    if not os.access(path, os.R_OK):
        return f"{path} cannot be read by this user"
    if path.parent.name != PINNED.version or platform.machine() not in ("x86_64", "AMD64"):
        return _wrong_form(path, status.st_size)
    if status.st_size != PINNED.library_bytes:
        return (
            f"{path} has {status.st_size} bytes, expected {PINNED.library_bytes}: it is truncated"
            " or of another version"
        )
    digest = _sha256(path, status.st_mtime_ns)
    if digest != PINNED.library_sha256:
        return (
            f"{path} has SHA-256 {digest}, expected {PINNED.library_sha256}: it is damaged or of"
            " another version"
        )
    return None


def _wrong_form(path: Path, size: int) -> str | None:
    """Return whether it is no shared library, or ends before its section headers do."""
    if platform.system() != "Linux":
        return None
    with path.open("rb") as file:
        header = file.read(ELF64_HEADER_BYTES)
    if len(header) < ELF64_HEADER_BYTES or not header.startswith(ELF):
        return f"{path} is not a shared library"
    (offset,) = struct.unpack_from("<Q", header, 40)  # e_shoff
    entry, count = struct.unpack_from("<HH", header, 58)  # e_shentsize, e_shnum
    if size < (end := offset + entry * count):
        return f"{path} has {size} bytes, expected at least {end}: it is truncated"
    return None


@lru_cache(maxsize=4)
def _sha256(path: Path, changed_ns: int) -> str:
    """Return the digest; `changed_ns` distinguishes contents."""
    del changed_ns
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def install(archive: str, folder: Path) -> Path:
    """Unpack a file or URL into `folder`/<version>; return the library.

    An existing library stays if it is right. Raises LibraryError.
    """
    library = folder / PINNED.version / NAME
    if problem(library) is None:
        return library
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with _opened(archive) as file:
            _check_archive(archive, file)
            _unpack(archive, file, library)
    except (OSError, zipfile.BadZipFile) as error:
        raise LibraryError(
            f"{archive}: {error}; expected linux-so.zip, see {PINNED.url}"
        ) from error
    if (wrong := problem(library)) is not None:
        library.unlink()
        raise LibraryError(f"{archive}: {wrong}")
    return library


@contextlib.contextmanager
def _opened(archive: str) -> Iterator[IO[bytes]]:
    """Yield the archive, downloaded to a temporary file if it is a URL."""
    if not archive.startswith(("http://", "https://")):
        with Path(archive).expanduser().open("rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as copy:
        with urllib.request.urlopen(archive, timeout=TIMEOUT_S) as answer:
            while chunk := answer.read(CHUNK_BYTES):
                copy.write(chunk)
        yield copy


def _check_archive(archive: str, file: IO[bytes]) -> None:
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    if digest.hexdigest() != PINNED.archive_sha256:
        raise LibraryError(
            f"{archive} has SHA-256 {digest.hexdigest()}, expected {PINNED.archive_sha256}, that of"
            f" {PINNED.url}: it is damaged or of another version"
        )


def _unpack(archive: str, file: IO[bytes], library: Path) -> None:
    """Write the library under another name first, so that no half of it is ever loaded."""
    with zipfile.ZipFile(file) as content:
        names = [name for name in content.namelist() if Path(name).name == NAME]
        if not names:
            raise LibraryError(f"{archive} contains no {NAME}")
        half = library.with_name(f".{NAME}.{os.getpid()}")
        try:
            with content.open(names[0]) as source, half.open("wb") as target:
                while chunk := source.read(CHUNK_BYTES):
                    target.write(chunk)
            half.chmod(0o755)
            half.replace(library)
        finally:
            half.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    """Install; return the exit code."""
    parser = argparse.ArgumentParser(description="Install SAPIEN's GPU PhysX library.")
    parser.add_argument("archive", help=f"linux-so.zip, a file or URL, such as {PINNED.url}")
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path.home() / FOLDER,
        help="folder of all versions (%(default)s)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    try:
        print(install(args.archive, args.folder))
    except LibraryError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
