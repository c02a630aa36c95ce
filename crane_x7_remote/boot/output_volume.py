"""Whether results survive the container. Folder and mount table → a warning, or None."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Final

MOUNTS: Final = Path("/proc/self/mountinfo")
ANONYMOUS: Final = re.compile(r"/volumes/[0-9a-f]{64}/_data(/|$)")
"""Name of a volume that Docker or podman created because none was mounted at the image's VOLUME."""
OCTAL: Final = re.compile(r"\\([0-7]{3})")


def warning(folder: Path, mounts: str) -> str | None:
    """Return a warning if `folder`, with this text of mountinfo, is not on a volume.

    Format of the table: proc_pid_mountinfo(5), field 4 is the root, field 5 the mount point.
    """
    place = PurePosixPath(folder)
    roots = {PurePosixPath(point): root for root, point in map(_mount, mounts.splitlines())}
    nearest = next((each for each in (place, *place.parents) if each in roots), None)
    if nearest is None or nearest == PurePosixPath("/"):
        how = "it is not on a volume"
    elif ANONYMOUS.search(roots[nearest]):
        how = "its volume has no name"
    else:
        return None
    return (
        f"OUTPUT_ROOT={folder}: {how}, so checkpoints and results are lost with this container;"
        f" mount a folder or a named volume there: -v /path/to/outputs:{folder}"
    )


def _mount(line: str) -> tuple[str, str]:
    """Return root and mount point of a line, with blanks and the like unescaped."""
    fields = line.split(" ", 5)
    root, point = (OCTAL.sub(lambda code: chr(int(code[1], 8)), each) for each in fields[3:5])
    return root, point
