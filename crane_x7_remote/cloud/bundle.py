"""This project as a file for a bare machine. The installed packages → a tar.gz.

It holds both packages as they are here, the requirements that pyproject.toml lists, and the pinned
versions; setup_env.sh installs from it. An image of this project needs none of this.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import io
import re
import tarfile
from pathlib import Path
from typing import Final

from crane_x7_remote.errors import CloudError

DISTRIBUTION: Final = "crane-x7-remote"
PACKAGES: Final = ("crane_x7_remote", "crane_x7_vla_rl")
LEFT_OUT: Final = {"__pycache__", "plugin"}
CONSTRAINTS: Final = ("constraints.txt", "constraints-lerobot.txt")
EXTRA: Final = re.compile(r"extra == ['\"](\w+)['\"]")
WITHOUT_TORCH: Final = ("torch", "transformers", "peft", "accelerate", "wandb", "tensorboard")
"""LeRobot has them in its own environment."""
JOBS: Final = {"sft": ("train",), "train": ("train", "sim")}
"""Job → extras that it needs in this project's environment."""


def version() -> str:
    """Return the version of the installed project."""
    return importlib.metadata.version(DISTRIBUTION)


def pack() -> bytes:
    """Return the archive: the same bytes for the same files. Raises CloudError."""
    root = Path(__file__).resolve().parents[2]
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, compresslevel=6) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for package in PACKAGES:
            for path in sorted((root / package).rglob("*")):
                inside = path.relative_to(root)
                if path.is_file() and not LEFT_OUT & set(inside.parts):
                    _add(archive, inside.as_posix(), path.read_bytes())
        for name in CONSTRAINTS:
            _add(archive, name, _constraints(name))
        for name, text in requirements().items():
            _add(archive, name, text.encode())
    return buffer.getvalue()


def requirements() -> dict[str, str]:
    """Return file → lines for pip: the basic ones, and those of each job."""
    wanted = importlib.metadata.requires(DISTRIBUTION) or []
    base: list[str] = []
    extras: dict[str, list[str]] = {}
    for line in wanted:
        found = EXTRA.search(line)
        if found is None:
            base.append(line)
        else:
            text, _, marker = line.partition(";")
            rest = re.sub(rf"\s*(and\s+)?{EXTRA.pattern}", "", marker).strip(" ()")
            extras.setdefault(found[1], []).append(f"{text.strip()}; {rest}" if rest else text)
    light = [line for line in extras.get("train", ()) if _name(line) not in WITHOUT_TORCH]
    files = {"requirements.txt": _lines([*base, *light])}
    for job, names in JOBS.items():
        files[f"requirements-{job}.txt"] = _lines(
            [line for name in names for line in extras.get(name, ())]
        )
    return files


def _constraints(name: str) -> bytes:
    path = Path(__file__).resolve().parent / "machine" / name
    try:
        return path.read_bytes()
    except OSError as error:
        raise CloudError(
            f"{path} is missing: this installation cannot set up a bare machine; use this project's"
            " image (--image), or a checkout"
        ) from error


def _name(line: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", line)
    return "" if found is None else found[0].lower().replace("_", "-")


def _lines(found: list[str]) -> str:
    return "".join(f"{line.strip()}\n" for line in dict.fromkeys(found))


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    archive.addfile(info, io.BytesIO(content))
