"""Files that a simulator reads: name and text → a path in the temporary folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from crane_x7_vla_rl.sim.errors import SimError


def write(name: str, text: str) -> Path:
    """Write a file unless it exists, and return its path; other text needs another `name`.

    The file is never incomplete, since several processes may start at the same time. Raises
    SimError if the file cannot be written, or the folder belongs to another user.
    """
    home = Path(tempfile.gettempdir()) / f"crane_x7-{os.getuid()}"
    path = home / name
    try:
        home.mkdir(mode=0o700, exist_ok=True)
        if home.stat().st_uid != os.getuid():
            raise PermissionError("it belongs to another user")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
                file.write(text)
            os.replace(file.name, path)
    except OSError as error:
        raise SimError(
            f"files for the simulator cannot be written to {home}: {error}. Free space on its disk,"
            " or set TMPDIR to another folder"
        ) from error
    return path
