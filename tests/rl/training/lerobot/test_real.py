"""LeRobot itself trains through our commands: ACT, SmolVLA and π0, tiny, on the CPU, offline."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lerobot_rig
import pytest

pytest.importorskip("pyarrow", reason="needs the train extra")
pytest.importorskip("av", reason="needs the train extra")

from data_rig import FPS, episode

from crane_x7_vla_rl.data.lerobot import LeRobotWriter
from crane_x7_vla_rl.training.lerobot import saved

pytestmark = [pytest.mark.lerobot, pytest.mark.timeout(1800)]

ACT = [
    "--policy.type=act",
    "--policy.pretrained_backbone_weights=null",
    "--policy.chunk_size=4",
    "--policy.n_action_steps=4",
    "--policy.dim_model=64",
    "--policy.n_heads=4",
    "--policy.dim_feedforward=128",
    "--policy.optimizer_lr=5e-5",
]
COMMON = ["--policy.device=cpu", "--batch_size=2", "--num_workers=0", "--log_freq=1"]
STATE = (
    "pretrained_model/model.safetensors", "training_state/optimizer_state.safetensors",
    "training_state/rng_state.safetensors",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lerobot_rig.python()
    folder = tmp_path_factory.mktemp("data") / "ours"
    with LeRobotWriter(folder, FPS, (96, 64)) as writer:
        for number in range(3):
            writer.add(episode(number, 8 + number, size=(96, 64)))
    return folder


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "crane_x7_vla_rl.training.cli", "lerobot", *map(str, words)]


def train(*words: str | Path) -> str:
    done = subprocess.run(
        command(*words), capture_output=True, text=True, timeout=1500,
        env=lerobot_rig.environment(), cwd=lerobot_rig.ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def killed_after(path: Path, number: signal.Signals, *words: str | Path) -> int:
    """Start a training, send a signal to the whole of it once `path` exists, return its code."""
    with subprocess.Popen(
        command(*words), env=lerobot_rig.environment(), cwd=lerobot_rig.ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        end_s = time.monotonic() + 900
        while not path.exists() and time.monotonic() < end_s and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(number)
        return process.wait(600)


def test_act_killed_in_the_middle_resumes_to_the_very_same_weights(
    data: Path, tmp_path: Path
) -> None:
    words = [f"--dataset.root={data}", *ACT, *COMMON, "--steps=6", "--save_freq=3"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(*words, f"--output_dir={whole}")
    killed_after(killed / "checkpoints/000003", signal.SIGKILL, *words, f"--output_dir={killed}")
    time.sleep(1)  # the trainer dies with its supervisor
    found = saved.newest(killed)
    assert found is not None
    train(*words, f"--output_dir={killed}", "--resume", "auto")
    for name in STATE:
        mine = killed / "checkpoints/000006" / name
        assert mine.read_bytes() == (whole / "checkpoints/000006" / name).read_bytes()
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(row["loss"] > 0 for row in rows)
    described = (whole / "checkpoints/000006/pretrained_model/policy_io.yaml").read_text()
    assert "chunk_steps: 4" in described
    assert "size: 96x64" in described
    assert saved.read(whole / "checkpoints/000006" / saved.MARKER)["files"]


def test_sigterm_saves_the_present_step_and_ends_with_code_0(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [f"--dataset.root={data}", *ACT, *COMMON, "--steps=5000", "--save_freq=5000"]
    code = killed_after(run / "metrics.jsonl", signal.SIGTERM, *words, f"--output_dir={run}")
    assert code == 0
    found = saved.newest(run)
    assert found is not None
    assert 0 < found.step < 5000


@pytest.mark.parametrize("kind", ["smolvla", "pi0"])
def test_a_tiny_vla_trains_20_steps_saves_and_resumes(
    kind: str, data: Path, tmp_path: Path
) -> None:
    start = lerobot_rig.tiny(kind, tmp_path / "start")
    run = tmp_path / "run"
    words = [f"--dataset.root={data}", f"--policy.path={start}", *COMMON, "--save_freq=10"]
    train(*words, "--steps=10", f"--output_dir={run}")
    train(*words, "--steps=20", f"--output_dir={run}", "--resume", "auto")
    found = saved.newest(run)
    assert found is not None
    assert found.step == 20
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert (found.model / "policy_io.yaml").is_file()


def test_lerobots_layout_is_the_one_that_the_stand_in_writes(data: Path, tmp_path: Path) -> None:
    import lerobot_saves

    run = tmp_path / "run"
    words = [f"--dataset.root={data}", *ACT, *COMMON, "--steps=1", "--save_freq=1"]
    train(*words, f"--output_dir={run}")
    stand_in = lerobot_saves.save(tmp_path / "other", 1)
    real = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    made = {str(p.relative_to(tmp_path / "other")) for p in stand_in.rglob("*") if p.is_file()}
    steps = {name for name in made if "processor_0" in name}
    assert made - steps <= real
    assert os.readlink(run / "checkpoints/last") == "000001"
