"""What machine this is. nvidia-smi, Python's packages → rows of a report; no torch is imported."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from typing import Final

from gpu_check.run import Row, row

QUERY: Final = "name,memory.total,memory.used,driver_version,power.limit,clocks.max.sm"
PACKAGES: Final = (
    "torch", "triton", "transformers", "peft", "accelerate", "sapien", "mani_skill",
    "genesis-world", "numpy",
)  # fmt: skip


def rows() -> list[Row]:
    """Return card, driver, processor, Python and versions."""
    found = [row("card", card) for card in _cards()] or [row("card", "none")]
    compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), "none")
    found += [
        row("python", platform.python_version()),
        row("system", platform.platform()),
        row("cores", len(os.sched_getaffinity(0))),
        row("c compiler", compiler),
        row("commit", _commit()),
    ]
    return found + [row(f"version of {name}", _version(name)) for name in PACKAGES]


def _cards() -> list[str]:
    """Return nvidia-smi's line of each card."""
    if shutil.which("nvidia-smi") is None:
        return []
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    return done.stdout.splitlines() if done.returncode == 0 else []


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    if shutil.which("git") is None:
        return "unknown"
    here = os.path.dirname(os.path.abspath(sys.argv[0]))
    done = subprocess.run(
        ["git", "-C", here, "rev-parse", "--short", "HEAD"],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    return done.stdout.strip() or "unknown"
