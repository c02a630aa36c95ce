"""Packages for a machine without a registry. Names → folders of wheels → PYTHONPATH.

Such a machine has torch, triton, transformers, peft and what they need; the rest comes as wheels,
in folders small enough to be copied one by one. They are unpacked next to the models, once per run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PYTHON: Final = "3.12"
PART_BYTES: Final = 59_000_000
LOOP: Final = (
    "websockets", "cbor2", "simplejpeg", "pydantic", "pydantic_core", "annotated-types",
    "typing-inspection", "pydantic-settings", "python-dotenv", "python-socks", "httpx2",
    "httpcore2", "truststore", "backports.zstd", "lz4", "google-crc32c", "argcomplete", "rich",
    "markdown-it-py", "mdurl",
)  # fmt: skip
TESTS: Final = ("pytest", "pytest-asyncio", "pytest-timeout", "pluggy", "iniconfig", "psutil")
SIMULATION: Final = (
    "sapien", "mani_skill", "gymnasium", "Farama-Notifications", "transforms3d", "trimesh",
    "pytorch-kinematics", "arm_pytorch_utilities", "pytorch-seed", "dacite", "GitPython", "gitdb",
    "smmap", "tyro", "docstring_parser", "typeguard", "defusedxml", "traitlets", "ipython",
)  # fmt: skip
FILMS: Final = ("av",)
NAMES: Final = (*LOOP, *TESTS, *SIMULATION, *FILMS)
LIBRARIES: Final = ("libvulkan.so.1", "libGLdispatch.so.0", "libEGL.so.1", "libGLX.so.0")
"""Loaders of Vulkan and OpenGL, copied from this machine for one that has none."""
SYSTEM: Final = Path("/usr/lib/x86_64-linux-gnu")
PLATFORMS: Final = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 27, 28, 31, 34)),
    "manylinux2014_x86_64", "manylinux1_x86_64",
)  # fmt: skip
ASSETS: Final = re.compile(r"mani_skill/assets/(?!.*\.json$)")
"""Of mani_skill, 100 MB of meshes for other robots; its JSON files are read when it is imported."""


def pinned(names: Sequence[str], constraints: str) -> list[str]:
    """Return `name==version` for each name, as the constraints file has it; else the name."""

    def key(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    lines = (line.partition("==") for line in constraints.splitlines())
    versions = {key(name.strip()): version.strip() for name, _, version in lines if version}
    return [f"{name}=={versions[key(name)]}" if key(name) in versions else name for name in names]


def make(folder: Path) -> int:
    """Fetch the wheels into `folder`/1, /2, …; return an exit code."""
    everything = folder / "all"
    everything.mkdir(parents=True, exist_ok=True)
    wanted = pinned(NAMES, (ROOT / "constraints.txt").read_text())
    abi = f"cp{PYTHON.replace('.', '')}"
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
         "--python-version", PYTHON, "--implementation", "cp", "--abi", abi,
         "--abi", "abi3", "--abi", "none", *platforms, "--dest", str(everything), *wanted],
        check=False,
    )  # fmt: skip
    if done.returncode:
        print(f"check_gpu: pip ended with exit code {done.returncode}; see above", file=sys.stderr)
        return 1
    for wheel in everything.glob("mani_skill-*.whl"):
        _without_assets(wheel)
    for name in LIBRARIES:
        if (SYSTEM / name).exists():
            shutil.copy(SYSTEM / name, everything / name)
    for number, files in enumerate(split(sorted(everything.iterdir()), PART_BYTES), 1):
        part = folder / str(number)
        part.mkdir(exist_ok=True)
        for file in files:
            file.replace(part / file.name)
        size = sum(path.stat().st_size for path in part.iterdir())
        print(f"{part}: {len(files)} files, {size / 1e6:.1f} MB")
    everything.rmdir()
    return 0


def split(files: Sequence[Path], limit: int) -> list[list[Path]]:
    """Return groups of files of at most `limit` bytes each; a larger file has a group alone."""
    groups: list[list[Path]] = []
    room: list[int] = []
    for file in sorted(files, key=lambda path: -path.stat().st_size):
        size = file.stat().st_size
        place = next((n for n, left in enumerate(room) if left >= size), None)
        if place is None:
            groups.append([])
            room.append(limit)
            place = len(groups) - 1
        groups[place].append(file)
        room[place] -= size
    return groups


def _without_assets(wheel: Path) -> None:
    smaller = wheel.with_suffix(".smaller")
    with (
        zipfile.ZipFile(wheel) as whole,
        zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as few,
    ):
        for name in whole.namelist():
            if not ASSETS.match(name):
                few.writestr(name, whole.read(name))
    smaller.replace(wheel)


def environment(
    ours: Mapping[str, str], folders: Sequence[Path], scratch: Path, root: Path, tiny: bool = False
) -> dict[str, str]:
    """Return the children's environment: the checkout first, then the wheels, unpacked.

    Raises FileNotFoundError for a folder that is not there.
    """
    site, libraries = scratch / "site", scratch / "lib"
    site.mkdir()
    libraries.mkdir()
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.suffix == ".whl":
                with zipfile.ZipFile(path) as wheel:
                    wheel.extractall(site)
            elif ".so" in path.suffixes and path.name not in _loadable():
                shutil.copy(path, libraries / path.name)
    made = dict(ours)
    places = [str(root), str(site), *filter(None, [ours.get("PYTHONPATH", "")])]
    made["PYTHONPATH"] = os.pathsep.join(places)
    if any(libraries.iterdir()):
        known = [str(libraries), *filter(None, [ours.get("LD_LIBRARY_PATH", "")])]
        made["LD_LIBRARY_PATH"] = os.pathsep.join(known)
    made.setdefault("HF_HUB_OFFLINE", "1")  # everything is created here
    made.setdefault("PYTHONUNBUFFERED", "1")
    if tiny:  # several threads would wait for each other on a busy machine
        made["OMP_NUM_THREADS"] = "1"
    return made


def _loadable() -> str:
    """Return ldconfig's list of libraries."""
    tool = shutil.which("ldconfig") or "/sbin/ldconfig"
    if not Path(tool).exists():
        return ""
    done = subprocess.run([tool, "-p"], capture_output=True, text=True, timeout=20, check=False)
    return done.stdout
