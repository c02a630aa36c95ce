"""openpi's own client, unchanged, in its own environment (it needs numpy < 2)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from serve_policy_rig import serving

PACKAGE = "openpi-client==0.1.2"
FORGOTTEN = "typing_extensions"
"""It imports this package and does not require it."""
ROOT = Path(__file__).parents[3]
PROGRAM = ROOT / "tests" / "rigs" / "openpi_client_program.py"
FOLDER = ROOT / ".cache" / PACKAGE.replace("==", "-")
"""Kept between runs; building it takes about 20 s."""


def interpreter() -> Path:
    """Return the Python of the client's environment; builds it if it is not there."""
    python = FOLDER / "bin" / "python"
    if not (FOLDER / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], check=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", PACKAGE, FORGOTTEN], check=True
        )
        (FOLDER / "ready").touch()
    return python


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_openpis_own_client_is_answered_and_told_its_mistake() -> None:
    with serving("--vla-policy=color-servo", POLICY_API_KEY="sesame") as (url, _):
        ended = subprocess.run(
            [str(interpreter()), "-W", "ignore", str(PROGRAM), url, "sesame"],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["numpy"].startswith("1.")
    assert found["metadata"]["policy_type"] == "color-servo"
    steps = found["metadata"]["chunk_steps"]
    assert found["shapes"] == [[steps, 8]] * 3
    assert (found["dtype"], found["finite"]) == ("float32", True)
    assert found["timing"]["prev_total_ms"] > 0
    assert "has no observation/image" in found["error"]
