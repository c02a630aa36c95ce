"""One writer for each data set. A path → an open, locked file."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from crane_x7_vla_rl.data.episode import DataError


def take_lock(path: Path, folder: Path) -> IO[str]:
    """Lock the file at `path` for the data set in `folder`; raises DataError if another has it."""
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise DataError(
            f"{folder}: another writer uses this data set; wait until it ends, or use"
            " another folder"
        ) from error
    return lock
