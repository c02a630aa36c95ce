"""Files that are made here and read by a simulator, kept in the temporary folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write(name: str, text: str) -> Path:
    """Write a file unless it is there, and return its path; `name` must be another for other text.

    Whole at any time, for processes that start at the same time. Raises OSError, also where the
    folder is somebody else's.
    """
    home = Path(tempfile.gettempdir()) / f"crane_x7-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    if home.stat().st_uid != os.getuid():
        raise PermissionError(f"{home} belongs to somebody else; remove it, or set TMPDIR")
    path = home / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text)
        os.replace(file.name, path)
    return path
