"""Bags of a UR10e become a LeRobotDataset v3 with its six joints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the train extra")
pytest.importorskip("rosbags", reason="needs the train extra")

import osmo_rig
import pyarrow.parquet as pq
import rosbags_rig
from rosbags.rosbag2 import StoragePlugin

from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.robot import JOINT_NAMES
from crane_x7_vla_rl.training.lerobot import describe
from crane_x7_vla_rl.training.osmo import bags as module
from crane_x7_vla_rl.training.osmo.bags import prepare
from crane_x7_vla_rl.training.osmo.config import DataSection


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rosbags")
    osmo_rig.bag(folder / "rec_0", 0)
    osmo_rig.bag(folder / "rec_1", 1, storage=StoragePlugin.SQLITE3)
    return folder


def table(folder: Path) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    found = pq.read_table(folder / "data/chunk-000/file-000.parquet")
    return {name: np.array(found[name].to_pylist()) for name in found.column_names}


def test_db3_and_mcap_become_episodes_of_six_joints_at_30_hz(bags: Path, tmp_path: Path) -> None:
    folder = prepare(DataSection(path=str(bags)), tmp_path / "data")
    info = json.loads((folder / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["robot_type"]) == ("v3.0", 30, "other")
    assert info["total_episodes"] == 2
    for name in ("action", "observation.state"):
        assert info["features"][name]["names"] == list(osmo_rig.UR10E)
        assert info["features"][name]["shape"] == [6]
    assert info["features"]["observation.images.base"]["shape"] == [64, 96, 3]
    rows = table(folder)
    assert {*rows["episode_index"]} == {0, 1}
    state, action = rows["observation.state"], rows["action"]
    np.testing.assert_allclose(state[0], osmo_rig.joints_at(0, 0), atol=2e-3)
    inside = rows["episode_index"][1:] == rows["episode_index"][:-1]
    np.testing.assert_allclose(action[:-1][inside], state[1:][inside], atol=1e-6)


def test_deltas_joints_in_another_order_and_smaller_images(bags: Path, tmp_path: Path) -> None:
    joints = ("shoulder_pan_joint", "shoulder_lift_joint")
    section = DataSection(path=str(bags), joints=joints, action="delta", image_size=(48, 32))
    folder = prepare(section, tmp_path / "data")
    info = json.loads((folder / "meta/info.json").read_text())
    assert info["features"]["action"]["names"] == list(joints)
    assert info["features"]["observation.images.base"]["shape"] == [32, 48, 3]
    rows = table(folder)
    np.testing.assert_allclose(rows["observation.state"][0], [0.5, 0.0], atol=5e-3)
    speed = np.array([0.12, 0.02]) / 30
    np.testing.assert_allclose(rows["action"].mean(axis=0), speed, rtol=0.1)


def test_a_finished_conversion_is_kept_and_other_options_convert_again(
    bags: Path, tmp_path: Path
) -> None:
    section = DataSection(path=str(bags))
    folder = prepare(section, tmp_path / "data")
    before = (folder / "meta/info.json").stat().st_mtime_ns
    prepare(section, folder)
    assert (folder / "meta/info.json").stat().st_mtime_ns == before
    prepare(DataSection(path=str(bags), fps=15), folder)
    assert json.loads((folder / "meta/info.json").read_text())["fps"] == 15


def test_a_killed_conversion_resumes_after_its_last_episode(
    bags: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section, folder = DataSection(path=str(bags)), tmp_path / "data"
    read, seen = module.episode, []

    def once(bag: Path, *rest: Any) -> Any:
        seen.append(bag.name)
        if seen == ["rec_0", "rec_1"]:
            raise KeyboardInterrupt
        return read(bag, *rest)

    monkeypatch.setattr(module, "episode", once)
    with pytest.raises(KeyboardInterrupt):
        prepare(section, folder)
    assert json.loads((folder / "meta/info.json").read_text())["total_episodes"] == 1
    prepare(section, folder)
    assert json.loads((folder / "meta/info.json").read_text())["total_episodes"] == 2
    assert seen.count("rec_1") == 2


def test_faults_name_bag_and_key(bags: Path, tmp_path: Path) -> None:
    target = tmp_path / "data"
    with pytest.raises(DataError, match=r"data\.path: .*nowhere does not exist"):
        prepare(DataSection(path=str(tmp_path / "nowhere")), target)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"expected folders with metadata\.yaml"):
        prepare(DataSection(path=str(tmp_path / "empty")), target)
    with pytest.raises(DataError, match="lacks gripper"):
        prepare(DataSection(path=str(bags), joints=("elbow_joint", "gripper")), target)
    with pytest.raises(DataError, match=r"/joints.*is missing from the bag"):
        prepare(DataSection(path=str(bags), joint_states_topic="/joints", joints=("a",)), target)


def test_a_crane_x7_keeps_its_eight_joints_and_its_name(tmp_path: Path) -> None:
    rosbags_rig.write_bag(tmp_path / "bags/arm", rosbags_rig.Scene(seconds=0.5).sent())
    folder = prepare(DataSection(path=str(tmp_path / "bags")), tmp_path / "data")
    info = json.loads((folder / "meta/info.json").read_text())
    assert info["robot_type"] == "crane_x7"
    assert info["features"]["action"]["names"] == list(JOINT_NAMES)
    text = describe.policy_io(info, {"chunk_size": 100})
    assert text is not None, "so a checkpoint can drive the arm"
    assert "joints: all" in text


def test_of_two_cameras_one_must_be_named(tmp_path: Path) -> None:
    picture = np.zeros((32, 48, 3), np.uint8)
    extra = [(n / 30, "/wrist/image", rosbags_rig.raw_image(n / 30, picture, "rgb8"))
             for n in range(30)]  # fmt: skip
    osmo_rig.bag(tmp_path / "bags/two", extra=extra)
    with pytest.raises(DataError, match=r"2 topics .*/wrist/image.*data\.camera_topic"):
        prepare(DataSection(path=str(tmp_path / "bags")), tmp_path / "data")
    section = DataSection(path=str(tmp_path / "bags"), camera_topic="/wrist/image")
    info = json.loads((prepare(section, tmp_path / "data") / "meta/info.json").read_text())
    assert info["features"]["observation.images.base"]["shape"] == [32, 48, 3]
