"""`evaluate` as a command, of policies that run in another process: a server of this project, and a
LeRobot checkpoint; in simulation and on recordings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import lerobot_rig
import numpy as np
import pytest
from serve_policy_rig import serving

for package in ("torch", "pyarrow", "av"):
    pytest.importorskip(package, reason="needs the train extra")

import pyarrow.parquet as pq

from crane_x7_vla_rl.data.episode import Episode
from crane_x7_vla_rl.data.lerobot import Extras, LeRobotWriter
from crane_x7_vla_rl.policies.base import ModelOptions, more_cameras
from crane_x7_vla_rl.policies.load import load_policy
from crane_x7_vla_rl.robot import HOME_RAD, JOINT_NAMES
from crane_x7_vla_rl.training import cli
from crane_x7_vla_rl.types import JointState, Observation

FRAMES = 12
SIZE = (64, 48)


def an_episode() -> Episode:
    """An arm that turns its first joint by 0.01 rad per frame."""
    position = np.tile(HOME_RAD, (FRAMES + 1, 1)).astype(np.float32)
    position[:, 0] += 0.01 * np.arange(FRAMES + 1)
    image = np.full((FRAMES, SIZE[1], SIZE[0], 3), 90, np.uint8)
    return Episode(image, position[:-1], position[1:], "pick up the red cube", 10, None, "test")


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    with LeRobotWriter(tmp_path / "data", 10, SIZE) as writer:
        writer.add(an_episode())
    return tmp_path / "data"


def evaluated(recorded: Path, *flags: str) -> dict[str, Any]:
    """What `evaluate` writes about one short scene and the recorded episode."""
    output = recorded.parent / "out"
    words = [
        "--num-episodes", "1", "--episode-s", "1", "--videos", "0", "--processes", "1",
        "--data-root", str(recorded), "--offline-episodes", "0", "--offline-frames", "4",
        "--output", str(output), "--device", "cpu",
    ]  # fmt: skip
    assert cli.main(["evaluate", *flags, *words]) == 0
    rows = pq.read_table(output / "all_episodes.parquet").to_pylist()
    assert [row["frame"] for row in rows] == [*range(FRAMES)]
    for row in rows:
        assert all(np.isfinite(row[f"predicted_action_{name}"]) for name in JOINT_NAMES)
        assert row["inference_time_s"] > 0
    results: dict[str, Any] = json.loads((output / "results.json").read_text())
    assert results["success"]["episodes"] == 1
    assert results["offline"]["frames"] == 4
    assert results["offline"]["episodes"] == [0]
    assert np.isfinite([*results["offline"]["episodes_mean_error_rad"].values()]).all()
    return results


@pytest.mark.timeout(300)
def test_a_running_policy_server_is_evaluated(recorded: Path) -> None:
    with serving("--vla-policy=color-servo") as (url, _):
        results = evaluated(recorded, "--policy", "remote", "--server", url)
    assert results["policy"] == "remote"
    assert results["world"]["control_hz"] == 20  # of the server's chunks


@pytest.mark.lerobot
@pytest.mark.timeout(600)
def test_a_lerobot_checkpoint_is_evaluated(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In LeRobot's own environment; its targets lie near the arm's home pose."""
    for name, value in lerobot_rig.environment().items():
        monkeypatch.setenv(name, value)
    folder = lerobot_rig.tiny("act", tmp_path / "act", "--size", f"{SIZE[0]}x{SIZE[1]}")
    results = evaluated(recorded, "--checkpoint", str(folder))
    assert results["policy"] == "lerobot"
    assert results["world"]["control_hz"] == 10
    assert results["world"]["image_size"] == [*SIZE]
    assert max(results["offline"]["episodes_mean_error_rad"].values()) < 1.0


@pytest.mark.lerobot
@pytest.mark.timeout(600)
def test_a_lerobot_checkpoint_of_two_cameras_is_evaluated_and_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulation, recordings and a client of `serve-policy` give it both images."""
    for name, value in lerobot_rig.environment().items():
        monkeypatch.setenv(name, value)
    size = f"{SIZE[0]}x{SIZE[1]}"
    folder = lerobot_rig.tiny("act", tmp_path / "act", "--size", size, "--cameras", "base", "wrist")
    one = an_episode()
    with LeRobotWriter(tmp_path / "data", 10, SIZE, extras=Extras({"wrist": SIZE})) as writer:
        writer.add(replace(one, others={"wrist": one.images}))
    results = evaluated(tmp_path / "data", "--checkpoint", str(folder), "--image-size", size)
    assert results["policy"] == "lerobot"
    assert max(results["offline"]["episodes_mean_error_rad"].values()) < 1.0
    with serving(f"--vla-model-path={folder}") as (url, _):
        policy = load_policy("remote", ModelOptions(server=url, more_cameras=("wrist",)))
        assert more_cameras(policy) == ("wrist",)
        image = np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)
        joints = JointState(HOME_RAD, np.zeros(8))
        seen = Observation(image, joints, "pick up the red cube", 0.0, {"wrist": image})
        (chunk,) = policy.predict([seen])
    assert np.isfinite(chunk.position_rad).all()
