"""Where this process runs, and the folders that it writes. Files of Linux → facts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

CONTAINER_SIGNS: Final = (Path("/.dockerenv"), Path("/run/.containerenv"))
"""Files that Docker and podman put into a container."""
MEMORY_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")
MEMINFO: Final = Path("/proc/meminfo")
CACHE: Final = Path("~/.cache/huggingface")
WANDB: Final = Path("wandb")


def in_container() -> bool:
    """Whether this process runs in a container of Docker or podman."""
    return any(path.exists() for path in CONTAINER_SIGNS)


def nearest(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    whole = folder.expanduser().absolute()
    return next(path for path in (whole, *whole.parents) if os.path.lexists(path))


def hub_cache(hf_home: str | None) -> Path:
    """Return the folder of the Hub's cache."""
    return Path(hf_home or CACHE).expanduser()


def free_memory_bytes() -> int | None:
    """Return how much memory new processes can have; None if Linux does not tell."""
    try:
        lines = MEMINFO.read_text().splitlines()
        kib = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, IndexError):
        return None
    available = int(kib) * 1024
    try:
        limit = MEMORY_LIMIT.read_text().strip()
    except OSError:
        return available
    return min(available, int(limit)) if limit.isdecimal() else available
