"""The ledger of rentals: intent, label and id of every machine, on disk before money is spent.

One JSON file per rental in one folder, replaced as a whole and synced, file and folder, before a
write returns. It never holds a secret. A run id is locked while its process lives; the kernel frees
the lock however that process ends, so what is not locked and not gone was interrupted.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from crane_x7_remote.cloud.types import Order
from crane_x7_remote.errors import CloudError
from crane_x7_vla_rl.file_errors import why

logger = logging.getLogger(__name__)

VERSION: Final = 1
LOCKS: Final = "locks"
RUN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Stage(StrEnum):
    """How far a rental is."""

    INTENDED = "intended"
    """The order may have been sent: look for its label."""
    CREATED = "created"
    """The provider has named the machine."""
    ENDING = "ending"
    """Deletion has begun."""
    GONE = "gone"
    """The provider lists neither the machine nor volumes, except those that are kept."""


class RunningError(CloudError):
    """Another process runs, or ends, this run."""


@dataclass(frozen=True)
class Entry:
    """One rental. Times are seconds since the epoch by this computer's clock."""

    label: str
    run_id: str
    provider: str
    stage: Stage
    gpu_model: str
    gpus: int
    spot: bool
    location: str
    price_per_hour: float
    """USD, the machine; at first the offer's, then the provider's list."""
    intended_s: float
    machine_id: str | None = None
    listed: bool = False
    """Whether the provider has listed it: before, its absence from a list proves nothing."""
    boot_volume_id: str | None = None
    volume_ids: tuple[str, ...] = ()
    volumes_per_hour: float = 0.0
    """USD, as far as the provider states it."""
    keep_volumes: bool = False
    """Checkpoints there may be nowhere else: an interrupted run's volumes are kept, too."""
    kept_volume_ids: tuple[str, ...] = ()
    """Left on purpose; they cost money."""
    ended_s: float | None = None
    cost: float | None = None
    """USD, once it is gone."""
    host: str = ""
    """The computer that rented it."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What the run needs to come back to the machine: paths and names, no secret."""


class Ledger:
    """The folder of entries and locks."""

    def __init__(self, folder: Path) -> None:
        """Make the folder. Raises CloudError if it cannot be written."""
        self.folder = folder
        self._locks = folder / LOCKS
        self._held: dict[str, tuple[int, int]] = {}
        try:
            self._locks.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise self._unwritable(error) from error

    def begin(self, run_id: str, order: Order) -> Entry:
        """Write the intent to send `order`. It is on disk when this returns."""
        offer = order.offer
        entry = Entry(
            label=order.label,
            run_id=run_id,
            provider=offer.provider,
            stage=Stage.INTENDED,
            gpu_model=offer.gpu_model,
            gpus=offer.gpus,
            spot=offer.spot,
            location=offer.location,
            price_per_hour=offer.price_per_hour,
            intended_s=time.time(),
            boot_volume_id=order.boot_volume_id,
            keep_volumes=order.boot_volume_id is not None,  # it was kept for its checkpoints
            host=socket.gethostname(),
        )
        if self._path(entry.label).exists():
            raise CloudError(f"label {entry.label} is in the ledger already; make a new one")
        return self.write(entry)

    def write(self, entry: Entry) -> Entry:
        """Replace the entry's file and return `entry`. Raises CloudError."""
        path = self._path(entry.label)
        text = json.dumps({"version": VERSION} | asdict(entry), indent=2) + "\n"
        temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
        try:
            with open(temporary, "w", encoding="utf-8", opener=_private) as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(self.folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise self._unwritable(error) from error
        return entry

    def change(self, label: str, **values: Any) -> Entry:
        """Return the entry as it is on disk with `values` in place, after writing it."""
        return self.write(replace(self.read(label), **values))

    def read(self, label: str) -> Entry:
        """Return one entry. Raises CloudError."""
        return _read(self._path(label))

    def entries(self) -> list[Entry]:
        """Return every entry, oldest first; one that cannot be read is said and left out."""
        found = []
        for path in sorted(self.folder.glob("*.json")):
            try:
                found.append(_read(path))
            except CloudError as error:
                logger.warning("%s", error)
        return sorted(found, key=lambda each: (each.intended_s, each.label))

    def runs(self, run_id: str) -> list[Entry]:
        """Return the entries of a run, oldest first."""
        return [entry for entry in self.entries() if entry.run_id == run_id]

    def no_longer_kept(self, volume_ids: tuple[str, ...]) -> None:
        """Note that these kept volumes are gone, or belong to another entry now."""
        for entry in self.entries():
            left = tuple(each for each in entry.kept_volume_ids if each not in volume_ids)
            if left != entry.kept_volume_ids:
                self.change(entry.label, kept_volume_ids=left)

    @contextlib.contextmanager
    def locked(self, run_id: str) -> Iterator[None]:
        """Hold the run's lock; a second time in one process counts. Raises RunningError."""
        if not RUN_ID.fullmatch(run_id):
            raise CloudError(
                f"run id {run_id!r}: expected up to 64 letters, digits, dots, dashes and _,"
                " such as first_run"
            )
        descriptor, depth = self._held.get(run_id) or (self._lock(run_id), 0)
        self._held[run_id] = (descriptor, depth + 1)
        try:
            yield
        finally:
            if depth == 0:
                del self._held[run_id]
                os.close(descriptor)
            else:
                self._held[run_id] = (descriptor, depth)

    def holder(self, run_id: str) -> int | None:
        """Return the process that holds the run's lock, 0 for one elsewhere, None if nobody."""
        try:
            with self.locked(run_id):
                return None
        except RunningError:
            pid, _, host = self._lock_path(run_id).read_text(errors="replace").partition(" ")
            return int(pid) if pid.isdecimal() and host.strip() == socket.gethostname() else 0

    def _lock(self, run_id: str) -> int:
        path = self._lock_path(run_id)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            who = os.pread(descriptor, 200, 0).decode(errors="replace").split() or ["?"]
            os.close(descriptor)
            raise RunningError(
                f"run {run_id} is in use by process {who[0]}; wait for it, end it with"
                f" `crane-x7-remote cloud down {run_id}`, or choose another --run-id"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        return descriptor

    def _lock_path(self, run_id: str) -> Path:
        return self._locks / f"{run_id}.lock"

    def _path(self, label: str) -> Path:
        return self.folder / f"{label}.json"

    def _unwritable(self, error: OSError) -> CloudError:
        return CloudError(
            f"ledger {self.folder} cannot be written: {why(error)}; nothing is rented without it:"
            " make room, or set CLOUD_LEDGER to another folder"
        )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> Entry:
    """Return the entry of a file; unknown keys of a later version are an error, not lost."""
    hint = "look at the provider's page, then remove the file"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CloudError(f"{path} cannot be read: {why(error)}") from error
    except ValueError as error:
        raise CloudError(f"{path} is no JSON ({error}); {hint}") from error
    version = values.pop("version", None) if isinstance(values, dict) else None
    if version != VERSION:
        raise CloudError(f"{path}: version {version}, expected {VERSION}; {hint}")
    unknown = values.keys() - {each.name for each in fields(Entry)}
    if unknown:
        raise CloudError(f"{path}: {sorted(unknown)} are unknown to this version; update it")
    try:
        lists = {name: tuple(values[name]) for name in ("volume_ids", "kept_volume_ids")}
        return Entry(**(values | lists | {"stage": Stage(values["stage"])}))
    except (KeyError, TypeError, ValueError) as error:
        raise CloudError(f"{path} is damaged ({error}); {hint}") from error
