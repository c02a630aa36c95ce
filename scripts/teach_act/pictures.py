"""Demonstrations with films → the same with small pictures, which LeRobot reads without a film.

    .venv-lerobot/bin/python scripts/teach_act/pictures.py DEMONSTRATIONS DATA_SET WIDTHxHEIGHT

Runs in LeRobot's environment. On two cores a film's frames cost more than a training step: LeRobot
looks for each frame of a batch in another film. The pictures shrink by the code that shrinks the
camera's when the policy drives: rendered small, they would look different.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from lerobot.datasets.lerobot_dataset import LeRobotDataset

from crane_x7_vla_rl import image_geometry
from crane_x7_vla_rl.data.lerobot import open_lerobot
from crane_x7_vla_rl.robot import JOINT_NAMES

CAMERA = "observation.images.base"
JOINTS = ("observation.state", "action")


def main(source: Path, target: Path, size: tuple[int, int]) -> None:
    """Copy every episode, its images (width, height); raises DataError and FileExistsError."""
    episodes = open_lerobot(str(source))
    width, height = size
    joints = {"dtype": "float32", "shape": (8,), "names": list(JOINT_NAMES)}
    picture = {
        "dtype": "image", "shape": (height, width, 3), "names": ["height", "width", "channels"],
    }  # fmt: skip
    written = LeRobotDataset.create(
        "local/demonstrations",
        round(episodes.fps),
        root=target,
        features={CAMERA: picture, **dict.fromkeys(JOINTS, joints)},
        use_videos=False,
        robot_type="crane_x7",
    )
    for number in range(len(episodes)):
        episode = episodes[number]
        for step in range(len(episode)):
            written.add_frame({
                CAMERA: image_geometry.fit(episode.image(step), size, "stretch"),
                "observation.state": episode.state[step], "action": episode.action[step],
                "task": episode.instruction,
            })  # fmt: skip
        written.save_episode()
    written.finalize()
    shutil.copy(source / "demos.json", target)


if __name__ == "__main__":
    width, height = map(int, sys.argv[3].split("x"))
    main(Path(sys.argv[1]), Path(sys.argv[2]), (width, height))
