"""LeRobot's environment for tests: its interpreter, tiny checkpoints, and our server in it.

Tests that use it carry the marker `lerobot`.
"""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

from crane_x7_vla_rl.lerobot_env import LerobotEnvError, interpreter

ROOT = Path(__file__).parents[2]
RIGS = Path(__file__).parent
SIZES = RIGS / "lerobot_sizes"
"""Must be on PYTHONPATH for tiny π0 and π0.5; see lerobot_tiny.py."""
MAKE_S = 300


@cache
def python() -> Path:
    """Return LeRobot's interpreter; the test is skipped with the reason if there is none."""
    try:
        return interpreter()
    except LerobotEnvError as error:
        # LeRobot's environment takes 6 GB and Python 3.12; the summary names the command for it.
        pytest.skip(str(error))


def environment() -> dict[str, str]:
    """Return the variables of LeRobot's processes: this checkout's code, the tiny sizes, no Hub."""
    return {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{SIZES}",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def run(*words: str | Path, timeout_s: float = MAKE_S) -> str:
    """Run one of our programs in LeRobot's environment and return its output."""
    done = subprocess.run(
        [str(python()), *map(str, words)],
        capture_output=True, text=True, timeout=timeout_s, env=environment(), cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def tiny(kind: str, folder: Path, *flags: str) -> Path:
    """Make a tiny checkpoint with random weights, see lerobot_tiny.py, and return its folder."""
    run(RIGS / "lerobot_tiny.py", kind, folder, *flags)
    return folder
