"""A LeRobot data set of two cameras, with interventions marked; and what a killed writer left."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_rig import FPS, SIZE, episode, picture, seen_twice

from crane_x7_vla_rl.data.episode import DataError, EpisodeError
from crane_x7_vla_rl.data.lerobot import Extras, LeRobotWriter, open_lerobot, recover
from crane_x7_vla_rl.data.reading import Reading

TWO = Extras({"wrist": (24, 16)}, intervention=True)
KEY = "observation.images.wrist"


def written(folder: Path, episodes: int = 3) -> Path:
    with LeRobotWriter(folder, FPS, SIZE, extras=TWO) as writer:
        for number in range(episodes):
            writer.add(seen_twice(number))
    return folder


def test_both_cameras_come_back_each_by_its_name(tmp_path: Path) -> None:
    folder = written(tmp_path / "data")
    for name, shift, size in (("base", 0, SIZE), ("wrist", 50, (24, 16))):
        source = open_lerobot(folder, reading=Reading(camera=name))
        for number in range(3):
            found = source[number]
            np.testing.assert_array_equal(found.state, seen_twice(number).state)
            for t in (0, 5):
                expected = picture(number + shift, t, size).astype(int)
                assert np.abs(found.image(t) - expected).max() < 12
    assert open_lerobot(folder).camera == "observation.images.base"


def test_interventions_are_a_column_with_statistics(tmp_path: Path) -> None:
    folder = written(tmp_path / "data")
    table = pq.read_table(folder / "data/chunk-000/file-000.parquet")
    assert table["intervention"].to_pylist() == [False, False, False, True, True, True] * 3
    info = json.loads((folder / "meta/info.json").read_text())
    assert info["features"]["intervention"] == {"dtype": "bool", "shape": [1], "names": None}
    assert info["features"][KEY]["shape"] == [16, 24, 3]
    stats = json.loads((folder / "meta/stats.json").read_text())
    assert stats["intervention"]["mean"] == [0.5]
    assert np.shape(stats[KEY]["mean"]) == (3, 1, 1)


def test_an_episode_without_the_second_camera_is_refused(tmp_path: Path) -> None:
    with LeRobotWriter(tmp_path / "data", FPS, SIZE, extras=TWO) as writer:
        writer.add(seen_twice(0))
        with pytest.raises(EpisodeError, match="has the cameras base without intervention"):
            writer.add(episode(1))
        assert len(writer) == 1


def test_a_data_set_of_one_camera_does_not_take_two(tmp_path: Path) -> None:
    with LeRobotWriter(tmp_path / "data", FPS, SIZE) as writer:
        writer.add(episode(0))
    with pytest.raises(DataError, match="its features differ"):
        LeRobotWriter(tmp_path / "data", FPS, SIZE, resume=True, extras=TWO)


def test_cameras_of_different_lengths_are_an_error() -> None:
    both = seen_twice(0)
    with pytest.raises(EpisodeError, match="camera wrist holds 5 frames, state 6"):
        replace(both, others={"wrist": both.others["wrist"][:5]})
    with pytest.raises(EpisodeError, match=r"intervention has shape \(5,\), expected \(6,\)"):
        replace(both, intervention=np.zeros(5, bool))


def test_what_a_killed_writer_left_is_published(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    writer = LeRobotWriter(folder, FPS, SIZE, extras=TWO)
    writer.add(seen_twice(0))
    writer.add(seen_twice(1))
    writer._lock.close()  # as the kernel does for a killed process
    assert not (folder / "meta/info.json").exists()
    assert recover(folder) == 2
    assert len(open_lerobot(folder)) == 2
    assert recover(folder) == 2
    assert recover(tmp_path / "nothing") is None
    reversed_order = Extras(dict(reversed(TWO.cameras.items())), intervention=True)
    with LeRobotWriter(folder, FPS, SIZE, resume=True, extras=reversed_order) as again:
        again.add(seen_twice(2))
    assert len(open_lerobot(folder, reading=Reading(camera="wrist"))) == 3
