"""The two programs of scripts/teach-act before LeRobot's trainer, on a tiny data set."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import lerobot_rig
import numpy as np
import pytest

pytest.importorskip("av", reason="needs the train extra")

from crane_x7_vla_rl.data.episode import Episode
from crane_x7_vla_rl.data.lerobot import LeRobotWriter, open_lerobot
from crane_x7_vla_rl.robot import HOME_RAD

pytestmark = [pytest.mark.lerobot, pytest.mark.timeout(600)]

PROGRAMS = lerobot_rig.ROOT / "scripts" / "teach_act"
SIZE = (64, 48)
EPISODES, FRAMES = 51, 3
"""start.py keeps 50 episodes for its own test."""
READ = """
import json, sys
from lerobot.datasets.lerobot_dataset import LeRobotDataset
read = LeRobotDataset("local/demonstrations", root=sys.argv[1])
one = read[5]
image = (255 * one["observation.images.base"]).round().byte().permute(1, 2, 0)
print(json.dumps({
    "frames": len(read), "fps": read.fps, "image": image.tolist(), "task": one["task"],
    "state": one["observation.state"].tolist(), "action": one["action"].tolist(),
}))
"""
LOOK = """
import sys
from pathlib import Path
import numpy as np
from crane_x7_remote.lerobot.loading import load
from crane_x7_remote.lerobot.predictor import Predictor
from crane_x7_vla_rl.robot import HOME_RAD
predictor = Predictor(load(Path(sys.argv[1]), "cpu"))
seen = [np.random.default_rng(k).integers(0, 255, (48, 64, 3), np.uint8) for k in (0, 1)]
one, other = predictor.answer([
    {"observation.images.base": image, "observation.state": HOME_RAD.astype(np.float32),
     "task": "lift"} for image in seen
])
print(predictor.chunk_steps, float(np.abs(one["actions"] - other["actions"]).max()))
"""


def demonstrations(folder: Path, episodes: int) -> Path:
    """Episodes of an arm that turns its first joint, with films of noise."""
    rng = np.random.default_rng(0)
    with LeRobotWriter(folder, 10, SIZE) as writer:
        for _ in range(episodes):
            position = np.tile(HOME_RAD, (FRAMES + 1, 1)).astype(np.float32)
            position += 0.02 * rng.standard_normal(position.shape).astype(np.float32)
            position[:, 7] = 0.5
            image = rng.integers(0, 255, (FRAMES, SIZE[1], SIZE[0], 3), np.uint8)
            writer.add(Episode(image, position[:-1], position[1:], "lift", 10, True, "test"))
    (folder / "demos.json").write_text('{"task": "Lift-CRANE-X7"}')
    return folder


def with_pictures(demos: Path, folder: Path) -> Path:
    lerobot_rig.run(PROGRAMS / "pictures.py", demos, folder, f"{SIZE[0]}x{SIZE[1]}")
    return folder


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demonstrations(tmp_path_factory.mktemp("teach") / "demos", EPISODES)


@pytest.fixture(scope="module")
def pictures(demos: Path) -> Path:
    return with_pictures(demos, demos.parent / "pictures")


def test_pictures_are_the_films_frames(demos: Path, pictures: Path) -> None:
    found = json.loads(lerobot_rig.run("-c", READ, pictures))
    assert (found["frames"], found["fps"], found["task"]) == (EPISODES * FRAMES, 10, "lift")
    episode = open_lerobot(str(demos))[1]
    assert (np.array(found["image"]) == episode.image(2)).all()
    assert found["state"] == pytest.approx(episode.state[2].tolist())
    assert found["action"] == pytest.approx(episode.action[2].tolist())
    assert json.loads((pictures / "demos.json").read_text()) == {"task": "Lift-CRANE-X7"}


def test_a_policy_that_starts_from_them_looks_at_the_image(pictures: Path, tmp_path: Path) -> None:
    """With the frozen norms of random weights it would not."""
    said = lerobot_rig.run(PROGRAMS / "start.py", pictures, tmp_path / "start", "0.03")
    assert "on 50 episodes that it never saw" in said
    config = json.loads((tmp_path / "start/config.json").read_text())
    assert config["type"] == "act"
    assert config["input_features"]["observation.images.base"]["shape"] == [3, SIZE[1], SIZE[0]]
    steps, difference = lerobot_rig.run("-c", LOOK, tmp_path / "start").split()[-2:]
    assert int(steps) == config["chunk_size"]
    assert float(difference) > 1e-4


def test_too_few_episodes_are_an_error_with_the_number(tmp_path: Path) -> None:
    folder = with_pictures(demonstrations(tmp_path / "few", 2), tmp_path / "pictures")
    done = subprocess.run(
        [str(lerobot_rig.python()), str(PROGRAMS / "start.py"), str(folder),
         str(tmp_path / "start"), "0.03"],
        capture_output=True, text=True, timeout=300, env=lerobot_rig.environment(),
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "start.py: too few episodes, expected more than 50: create more"
    )
