"""`demo --policy FOLDER` with LeRobot checkpoints: tiny policies with random weights drive."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import lerobot_rig
import pytest

pytestmark = [pytest.mark.lerobot, pytest.mark.timeout(400)]


@pytest.mark.parametrize("kind", ["smolvla", "pi0"])
def test_a_tiny_policy_drives_the_simulated_arm(tmp_path: Path, kind: str) -> None:
    """It lifts nothing (exit code 10), and no step leaves the limits."""
    folder = lerobot_rig.tiny(kind, tmp_path / kind)
    done = subprocess.run(
        [sys.executable, "-m", "crane_x7_remote", "demo", "--policy", str(folder),
         "--then", "", "--timeout", "12", "12", "--no-record",
         "--output-dir", str(tmp_path / "out"), "--json", str(tmp_path / "report.json")],
        capture_output=True, text=True, timeout=300,
        env={**lerobot_rig.environment(), "POLICY_TIMEOUT": "5", "MAX_FRAME_AGE": "5"},
    )  # fmt: skip
    assert done.returncode == 10, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["policy"] == "lerobot"
    assert report["asked_rate_hz"] == 10.0  # of its policy_io.yaml
    assert report["trajectories"] > 0
    assert report["policy_failures"] == 0


def test_a_policy_of_two_cameras_drives_if_the_wrist_cameras_topic_is_set(tmp_path: Path) -> None:
    folder = lerobot_rig.tiny("act", tmp_path / "act", "--cameras", "base", "wrist")
    command = [sys.executable, "-m", "crane_x7_remote", "demo", "--policy", str(folder),
               "--then", "", "--timeout", "12", "12", "--no-record", "--camera-rate", "10",
               "--output-dir", str(tmp_path / "out"),
               "--json", str(tmp_path / "report.json")]  # fmt: skip
    environ = {**lerobot_rig.environment(), "POLICY_TIMEOUT": "5", "MAX_FRAME_AGE": "5"}
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)
    assert refused.returncode == 5
    assert "set WRIST_CAMERA_TOPIC" in refused.stderr
    assert not (tmp_path / "out").exists(), "nothing was started"
    environ["WRIST_CAMERA_TOPIC"] = "/wrist/image_raw/compressed"
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environ)
    assert done.returncode == 10, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["trajectories"] > 0
    assert report["policy_failures"] == 0
