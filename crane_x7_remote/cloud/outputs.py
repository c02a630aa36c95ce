"""A training's outputs, brought home whole. A folder on the machine → the same files here.

The machine lists every file with its size, then with its SHA-256. What is missing here is fetched,
by rsync where both sides have it, else by sftp, which resumes where it was interrupted; a file gets
its name once its checksum is right. The most advanced checkpoint comes first. Names come from a
machine that others own: none may lead out of the folder.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Final, TypeVar

from crane_x7_remote.cloud.ssh import Done, Ssh, SshLostError
from crane_x7_remote.errors import CloudError
from crane_x7_vla_rl.log_text import shown

logger = logging.getLogger(__name__)

T = TypeVar("T")

PART: Final = ".part"
RSYNC: Final = "rsync"
RESERVE_BYTES: Final = 64 << 20
"""Left free here."""
BATCH_FILES: Final = 200
BATCH_BYTES: Final = 256 << 20
SLOWEST_BYTES_S: Final = 20_000
"""A slower transfer counts as lost, and is taken up again."""
LIST_S: Final = 120.0
HASH_BYTES_S: Final = 20e6
ROUNDS: Final = 5
"""How often files whose checksum is wrong are fetched again."""
STEP: Final = re.compile(r"checkpoints?[/_-](\d+)")


class NoRoomError(CloudError):
    """This computer's disk has no room for the outputs; they are still on the machine."""


@dataclass(frozen=True)
class Listing:
    """What is in the folder on the machine."""

    sizes: Mapping[str, int]
    """Path below the folder → bytes."""
    links: Mapping[str, str]
    """Path → where it leads."""
    refused: tuple[str, ...] = ()
    """Names that cannot be files of this folder here."""

    @property
    def total_bytes(self) -> int:
        """Of all files."""
        return sum(self.sizes.values())


@dataclass
class Outputs:
    """Brings one folder home; call `fetch` again to continue."""

    ssh: Ssh
    there: str
    """Absolute path on the machine."""
    here: Path
    patience_s: float = 600.0
    """How long a lost connection is tried again."""
    pause_s: float = 5.0
    tick: Callable[[], None] = lambda: None
    """Called between transfers: may raise to end them."""

    def listing(self) -> Listing:
        """Return what is there; an empty one if the folder does not exist."""
        out = self._patient(
            lambda: self.ssh.must(
                f"cd {shlex.quote(self.there)} 2>/dev/null || exit 0;"
                r" find . -type f -printf 'f%s\t%P\0'; find . -type l -printf 'l%P\0%l\0'",
                timeout_s=LIST_S,
            )
        )
        return _listing(out)

    def fetch(self) -> Listing:
        """Bring every file home, verified. Raises NoRoomError, CloudError."""
        listing = self.listing()
        for name in listing.refused:
            logger.warning("%s: not fetched, this is no name for a file here", shown(name))
        sums: dict[str, str] | None = None
        wrong: list[str] = []
        for _ in range(ROUNDS):
            self._bring(listing)
            if sums is None:
                sums = self._sums(listing)
            wrong = [name for name in listing.sizes if not self._accept(name, sums.get(name))]
            if not wrong:
                self._link(listing.links)
                return listing
            logger.warning("%d files differ from the machine's; fetching them again", len(wrong))
            listing = self.listing()
            sums = None
        raise CloudError(f"{self.there}: {len(wrong)} files never arrived whole: {wrong[:3]}")

    @cached_property
    def _has_rsync(self) -> bool:
        """Whether both sides have it."""
        if shutil.which(RSYNC) is None:
            return False
        return self._patient(lambda: self.ssh.run(f"command -v {RSYNC}")).code == 0

    def _bring(self, listing: Listing) -> None:
        """Fetch what is missing; it then lies beside its place as .part."""
        missing = [name for name in _by_worth(listing.sizes) if not self._is_here(name, listing)]
        need = sum(listing.sizes[name] - self._begun(name) for name in missing)
        self._check_room(need)
        for batch in _batches(missing, listing.sizes):
            self._patient(lambda batch=batch: self._one_batch(batch, listing))  # type: ignore[misc]

    def _one_batch(self, names: list[str], listing: Listing) -> None:
        self.tick()
        left = [name for name in names if not self._is_here(name, listing)]
        if not left:
            return
        limit_s = LIST_S + sum(listing.sizes[name] for name in left) / SLOWEST_BYTES_S
        act = self._by_rsync if self._has_rsync else self._by_sftp
        done = act(left, listing, limit_s)
        if done.code != 0:
            self._check_room(sum(listing.sizes[name] - self._begun(name) for name in left))
            raise SshLostError(f"transfer: {shown(done.err.strip() or 'no message')}")

    def _by_rsync(self, names: list[str], listing: Listing, limit_s: float) -> Done:
        """Fetch under the final names, which `_accept` checks; rsync keeps its own parts."""
        del listing
        return self.ssh.rsync(self.there, self.here, names, limit_s)

    def _by_sftp(self, names: list[str], listing: Listing, limit_s: float) -> Done:
        lines = []
        for name in names:
            part = self._part(name)
            part.parent.mkdir(parents=True, exist_ok=True)
            begun = self._begun(name)
            if begun > listing.sizes[name]:
                part.unlink()
            word = "reget" if 0 < begun < listing.sizes[name] else "get"
            lines.append(f"{word} {_quoted(f'{self.there}/{name}')} {_quoted(str(part))}")
        return self.ssh.sftp(lines, limit_s)

    def _is_here(self, name: str, listing: Listing) -> bool:
        return any(
            path.is_file() and path.stat().st_size == listing.sizes[name]
            for path in (self._part(name), self.here / name)
        )

    def _begun(self, name: str) -> int:
        part = self._part(name)
        return part.stat().st_size if part.is_file() else 0

    def _part(self, name: str) -> Path:
        return self.here / f"{name}{PART}"

    def _accept(self, name: str, wanted: str | None) -> bool:
        """Give a fetched file its name if its checksum is right; else remove it."""
        part, path = self._part(name), self.here / name
        found = part if part.is_file() else path
        if found.is_file() and wanted is not None and _sha256(found) == wanted:
            if found is part:
                part.replace(path)
            return True
        found.unlink(missing_ok=True)
        return False

    def _sums(self, listing: Listing) -> dict[str, str]:
        limit_s = LIST_S + listing.total_bytes / HASH_BYTES_S
        out = self._patient(
            lambda: self.ssh.must(
                f"cd {shlex.quote(self.there)} 2>/dev/null || exit 0;"
                " find . -type f -print0 | xargs -0 -r sha256sum -z",
                timeout_s=limit_s,
            )
        )
        found = {}
        for row in out.split(b"\0"):
            digest, _, name = row.partition(b"  ")
            found[_text(name).removeprefix("./")] = digest.decode(errors="replace")
        return found

    def _link(self, links: Mapping[str, str]) -> None:
        """Set links such as checkpoints/last that stay inside the folder."""
        for name, target in links.items():
            path = self.here / name
            if PurePosixPath(target).is_absolute() or ".." in PurePosixPath(target).parts:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_symlink():
                path.unlink()
            if not path.exists():
                path.symlink_to(target)

    def _check_room(self, need: int) -> None:
        self.here.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.here).free - RESERVE_BYTES
        if need > max(free, 0):
            raise NoRoomError(
                f"{self.here}: {need / 1e9:.2f} GB of outputs are to come, and {free / 1e9:.2f} GB"
                " are free; make room on this computer's disk"
            )

    def _patient(self, act: Callable[[], T]) -> T:
        """Repeat what a lost connection interrupts; raise its error after `patience_s`."""
        deadline_s = time.monotonic() + self.patience_s
        said = ""
        while True:
            try:
                return act()
            except SshLostError as error:
                if time.monotonic() > deadline_s:
                    raise
                if str(error) != said:  # one line per change
                    said = str(error)
                    logger.warning("%s; it is tried again", error)
                self.tick()
                time.sleep(self.pause_s)


def _listing(out: bytes) -> Listing:
    sizes: dict[str, int] = {}
    links: dict[str, str] = {}
    refused: list[str] = []
    rows = iter(out.split(b"\0"))
    for row in rows:
        kind, rest = row[:1], row[1:]
        if kind == b"f":
            size, _, raw = rest.partition(b"\t")
            name = _text(raw)
            if _fits(name):
                sizes[name] = int(size)
            else:
                refused.append(name)
        elif kind == b"l":
            name, target = _text(rest), _text(next(rows, b""))
            if _fits(name) and target:
                links[name] = target
    return Listing(sizes, links, tuple(refused))


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="surrogateescape")


def _fits(name: str) -> bool:
    """Whether a name is a plain path below the folder, and no file of a transfer."""
    path = PurePosixPath(name)
    inside = bool(name) and not path.is_absolute() and ".." not in path.parts
    return inside and name.isprintable() and not name.endswith(PART)


def _by_worth(sizes: Mapping[str, int]) -> list[str]:
    """Return the names: logs and other small files, then checkpoints, the newest first."""

    def worth(name: str) -> tuple[int, str]:
        found = STEP.search(name)
        return (-1 << 62 if found is None else -int(found[1]), name)

    return sorted(sizes, key=worth)


def _batches(names: Iterable[str], sizes: Mapping[str, int]) -> Iterable[list[str]]:
    batch: list[str] = []
    held = 0
    for name in names:
        if batch and (len(batch) >= BATCH_FILES or held + sizes[name] > BATCH_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(name)
        held += sizes[name]
    if batch:
        yield batch


def _quoted(path: str) -> str:
    """Return a path as sftp's batch reads it."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
