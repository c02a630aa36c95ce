"""scripts/setup-lerobot where it cannot work, or has nothing to do."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from places import ROOT

READ = ("pyproject.toml", "constraints-lerobot.txt", "scripts/setup-lerobot")


def checkout(folder: Path) -> Path:
    """What the script reads, in a checkout elsewhere."""
    for name in READ:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def run(folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    for name in ("bash", "cat", "cut", "dirname", "sha256sum"):
        if not (tools / name).exists():
            (tools / name).symlink_to(str(shutil.which(name)))
    return subprocess.run(
        [str(folder / "scripts/setup-lerobot")],
        capture_output=True, text=True, timeout=60,
        env={"PATH": str(tools), "HOME": str(folder), **environ},
    )  # fmt: skip


def test_without_python_3_12_it_says_what_to_install(tmp_path: Path) -> None:
    done = run(checkout(tmp_path))
    assert done.returncode == 1
    assert "no Python 3.12 or 3.13 with venv found" in done.stderr
    assert "PYTHON=" in done.stderr


def test_a_finished_set_up_returns_at_once(tmp_path: Path) -> None:
    folder = checkout(tmp_path)
    content = b"".join((folder / name).read_bytes() for name in READ)
    venv = folder / ".venv-lerobot"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to(str(shutil.which("true")))
    (venv / ".setup-stamp").write_text(f"{folder} {hashlib.sha256(content).hexdigest()}\n")
    done = run(folder)
    assert (done.returncode, done.stderr) == (0, "")
