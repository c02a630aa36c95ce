"""LeRobot's own environment: the named or usual folder → its Python interpreter.

LeRobot pins other versions of torch, numpy and transformers than this project, so it lives in an
environment beside ours, made by `scripts/setup-lerobot`, and runs as a process. Nothing of it is
imported here: its version is read from the names of the installed files.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

VERSION: Final = "0.6.1"
"""The release that `constraints-lerobot.txt` pins, and that this project is tested with."""
FOLDER: Final = ".venv-lerobot"
IN_IMAGE: Final = Path("/opt/venv-lerobot")
"""Place in the image, see docker/Dockerfile."""
SETUP: Final = "scripts/setup-lerobot"
VARIABLE: Final = "LEROBOT_VENV"
CHANGES: Final = (
    ("0.4", "0.4 brought the files policy_preprocessor.json and policy_postprocessor.json"),
    ("0.5", "0.5 needs Python 3.12 and transformers 5, which renamed weights"),
    ("0.6", "0.6 renamed eval_freq to env_eval_freq and takes a folder as --config_path"),
)
"""Release → what changed with it for this project."""


class LerobotEnvError(Exception):
    """LeRobot's environment is missing, broken or another version; says what to run."""


def interpreter(venv: str | Path | None = None) -> Path:
    """Return the Python of LeRobot's environment.

    `venv` is the value of LEROBOT_VENV; None: `.venv-lerobot` of this checkout, then the image's
    place. Raises LerobotEnvError if there is none, or if it holds another LeRobot than VERSION.
    """
    places = [Path(venv).expanduser().absolute()] if venv else list(_usual_places())
    folder = next((place for place in places if (place / "bin/python").exists()), None)
    if folder is None:
        looked = " and ".join(map(str, places))
        raise LerobotEnvError(
            f"LeRobot's environment is missing: there is no bin/python in {looked}; run {SETUP},"
            f" or set {VARIABLE} to the folder of an environment with LeRobot {VERSION}"
        )
    found = version(folder)
    if found is None:
        raise LerobotEnvError(f"{folder} holds no LeRobot, expected {VERSION}: run {SETUP} --force")
    if release(found) != release(VERSION):
        raise LerobotEnvError(
            f"{folder} holds LeRobot {found}, expected {VERSION}: {changes(found)}. Run {SETUP}"
            f" --force, or set {VARIABLE} to another environment"
        )
    return folder / "bin/python"


def version(folder: Path) -> str | None:
    """Return the version of LeRobot in an environment; None if it has none."""
    for info in sorted(folder.glob("lib/python3*/site-packages/lerobot-*.dist-info")):
        return info.name.removeprefix("lerobot-").removesuffix(".dist-info")
    return None


def release(text: str) -> tuple[int, ...]:
    """Return the numbers before the patch level, for comparison: "0.6.1" → (0, 6)."""
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def changes(found: str) -> str:
    """Return what changed between the release `found` and VERSION, as one phrase."""
    have = release(found)
    if have > release(VERSION):
        return "it is newer than this project knows"
    since = [what for number, what in CHANGES if release(number) > have]
    return "since then, " + ", ".join(since)


def _usual_places() -> Iterator[Path]:
    checkout = Path(__file__).resolve().parents[1]
    yield checkout / FOLDER
    beside = Path(sys.prefix).parent / FOLDER  # a package that is installed, not a checkout
    if beside != checkout / FOLDER:
        yield beside
    yield IN_IMAGE
