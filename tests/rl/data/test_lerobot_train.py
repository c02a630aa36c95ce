"""LeRobot itself loads what we write and trains on it; we read what LeRobot writes.

It runs in its own environment, which scripts/setup-lerobot makes. Nothing of it is imported here.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the train extra")
pytest.importorskip("av", reason="needs the train extra")

import lerobot_rig
from data_rig import FPS, INSTRUCTIONS, episode

from crane_x7_vla_rl.data.lerobot import LeRobotWriter, open_lerobot
from crane_x7_vla_rl.data.lerobot import writer as lerobot_writer
from crane_x7_vla_rl.robot import JOINT_NAMES

pytestmark = [pytest.mark.lerobot, pytest.mark.timeout(1800)]

SIZE = (96, 64)
STEPS = 10
READ = """
import json, sys
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
folder, target = sys.argv[1:]
data = LeRobotDataset("local/ours", root=folder, video_backend="pyav")
items = [data[k] for k in range(len(data))]
np.savez(
    target,
    images=np.stack([(x["observation.images.base"].numpy() * 255).round() for x in items]),
    state=np.stack([x["observation.state"].numpy() for x in items]),
    action=np.stack([x["action"].numpy() for x in items]),
    episode=np.array([int(x["episode_index"]) for x in items]),
    task=np.array([x["task"] for x in items]),
    mean=data.meta.stats["action"]["mean"],
    episodes=data.num_episodes,
)
"""
WRITE = """
import sys
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
folder, source = sys.argv[1:]
given = np.load(source)
joints = {"dtype": "float32", "shape": (8,), "names": given["names"].tolist()}
height, width = given["images"].shape[1:3]
camera = {"dtype": "video", "shape": (height, width, 3), "names": ["height", "width", "channels"]}
data = LeRobotDataset.create(
    "local/theirs", 10, root=folder, use_videos=True,
    features={"observation.state": joints, "action": joints, "observation.images.top": camera},
)
for number in range(3):
    for t in np.flatnonzero(given["episode"] == number):
        data.add_frame({
            "observation.state": given["state"][t], "action": given["action"][t],
            "observation.images.top": given["images"][t], "task": f"task {number % 2}",
        })
    data.save_episode()
data.finalize()
"""


@pytest.fixture(scope="module")
def lerobot() -> Path:
    """The `bin` folder of LeRobot's environment."""
    return lerobot_rig.python().parent


def _run(command: list[str | Path], home: Path) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=1200,
        cwd=home,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PYTHON"))},
            "HF_HOME": str(home / "hf"),
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of three groups of files, written by us."""
    folder = tmp_path_factory.mktemp("lerobot") / "ours"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lerobot_writer, "GROUP_EPISODES", 4)
        with LeRobotWriter(folder, FPS, SIZE) as writer:
            for number in range(10):
                writer.add(episode(number, 8 + number, size=SIZE))
    return folder


def test_lerobot_loads_the_frames_that_we_wrote(lerobot: Path, ours: Path, tmp_path: Path) -> None:
    target = tmp_path / "read.npz"
    _run([lerobot / "python", "-c", READ, ours, target], tmp_path)
    got = np.load(target)
    sent = [episode(number, 8 + number, size=SIZE) for number in range(10)]
    assert int(got["episodes"]) == 10
    np.testing.assert_array_equal(got["state"], np.concatenate([item.state for item in sent]))
    np.testing.assert_array_equal(got["action"], np.concatenate([item.action for item in sent]))
    assert got["task"].tolist() == [INSTRUCTIONS[number % 2] for number in got["episode"]]
    np.testing.assert_allclose(got["mean"], got["action"].astype(float).mean(axis=0), rtol=1e-6)
    mine = open_lerobot(ours)
    pictures = [mine[number].image(t) for number in range(10) for t in range(8 + number)]
    assert np.abs(got["images"].transpose(0, 2, 3, 1) - np.stack(pictures)).max() <= 2


def test_lerobot_trains_act_on_what_we_wrote(lerobot: Path, ours: Path, tmp_path: Path) -> None:
    options = {
        "dataset.repo_id": "local/ours",
        "dataset.root": ours,
        "dataset.video_backend": "pyav",
        "policy.type": "act",
        "policy.device": "cpu",
        "policy.push_to_hub": "false",
        "policy.pretrained_backbone_weights": "null",
        "policy.chunk_size": 4,
        "policy.n_action_steps": 4,
        "policy.dim_model": 64,
        "policy.dim_feedforward": 128,
        "policy.n_heads": 4,
        "policy.optimizer_lr": 1e-3,
        "steps": STEPS,
        "batch_size": 4,
        "num_workers": 0,
        "log_freq": 1,
        "save_freq": STEPS,
        "output_dir": tmp_path / "out",
        "wandb.enable": "false",
    }
    said = _run(
        [lerobot / "lerobot-train", *(f"--{key}={value}" for key, value in options.items())],
        tmp_path,
    )
    losses = [float(value) for value in re.findall(r"(?<!_)loss:([\d.]+|nan|inf)", said)]
    assert len(losses) == STEPS
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[STEPS // 2 :]) < sum(losses[: STEPS // 2])
    saved = tmp_path / f"out/checkpoints/{STEPS:06d}/pretrained_model"
    assert (saved / "model.safetensors").stat().st_size > 0
    features = json.loads((saved / "config.json").read_text())["input_features"]
    assert features["observation.images.base"]["shape"] == [3, SIZE[1], SIZE[0]]


def test_we_read_what_lerobot_writes(lerobot: Path, tmp_path: Path) -> None:
    items = [episode(number, 6 + number, size=SIZE) for number in range(3)]
    given = tmp_path / "given.npz"
    np.savez(
        given,
        images=np.concatenate([item.images for item in items]),
        state=np.concatenate([item.state for item in items]),
        action=np.concatenate([item.action for item in items]),
        episode=np.concatenate([[number] * len(item) for number, item in enumerate(items)]),
        names=[f"{name}.pos" for name in JOINT_NAMES],
    )
    _run([lerobot / "python", "-c", WRITE, tmp_path / "theirs", given], tmp_path)
    source = open_lerobot(tmp_path / "theirs")
    assert len(source) == 3
    assert source.fps == 10
    for number, item in enumerate(items):
        got = source[number]
        np.testing.assert_array_equal(got.state, item.state)
        np.testing.assert_array_equal(got.action, item.action)
        assert got.instruction == f"task {number % 2}"
        assert (got.success, got.seed) == (None, None)
        for t in range(len(item)):
            assert np.abs(got.image(t).astype(int) - item.image(t)).mean() < 6
