"""LeRobot data as drivers write it: joints under other names, other units, two cameras."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the train extra")
pytest.importorskip("av", reason="needs the train extra")

import pyarrow as pa
import pyarrow.parquet as pq
from data_rig import FPS, SIZE, episode

from crane_x7_vla_rl.data import validate
from crane_x7_vla_rl.data.convert import convert
from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.data.lerobot import LeRobotWriter, open_lerobot
from crane_x7_vla_rl.data.lerobot.columns import DRIVER_NAMES
from crane_x7_vla_rl.data.reading import Reading
from crane_x7_vla_rl.data.source import open_source
from crane_x7_vla_rl.robot import JOINT_NAMES, LOWER_RAD, UPPER_RAD

FEATURES = ("observation.state", "action")
FRAMES = "data/chunk-000/file-000.parquet"
SHORT = DRIVER_NAMES[-1]
"""shoulder_pan … gripper."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with LeRobotWriter(tmp_path / "wild", FPS, SIZE) as writer:
        for number in range(2):
            writer.add(episode(number, 4 + number))
    return tmp_path / "wild"


def change(
    folder: Path, names: list[str], of_rows: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
) -> None:
    """Rewrite state and action: rows (T, 8) in rad become `of_rows(rows)` under `names`."""
    path = folder / FRAMES
    table = pq.read_table(path)
    for feature in FEATURES:
        rows = of_rows(np.array(table[feature].to_pylist(), np.float64)).astype(np.float32)
        column = pa.array(rows.tolist(), pa.list_(pa.float32()))
        table = table.set_column(table.column_names.index(feature), feature, column)
    pq.write_table(table, path)
    info = json.loads((folder / "meta/info.json").read_text())
    for feature in FEATURES:
        info["features"][feature] |= {"names": names, "shape": [len(names)]}
    (folder / "meta/info.json").write_text(json.dumps(info))


def percent(rad: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    share = (rad - LOWER_RAD) / (UPPER_RAD - LOWER_RAD)
    return np.hstack([share[:, :7] * 200 - 100, share[:, 7:] * 100])


def assert_is_the_rig(folder: Path, reading: Reading) -> None:
    source = open_source(folder, reading=reading)
    for number in range(2):
        sent, got = episode(number, 4 + number), source[number]
        np.testing.assert_allclose(got.state, sent.state, atol=1e-6)
        np.testing.assert_allclose(got.action, sent.action, atol=1e-6)


@pytest.mark.parametrize("names", DRIVER_NAMES)
@pytest.mark.parametrize("suffix", ["", ".pos"])
def test_joints_under_a_drivers_names_are_found(
    folder: Path, names: tuple[str, ...], suffix: str
) -> None:
    mixed = [7, 0, 2, 1, 3, 4, 6, 5]
    change(folder, [names[joint] + suffix for joint in mixed], lambda rows: rows[:, mixed])
    assert_is_the_rig(folder, Reading())


def test_positions_are_picked_from_interleaved_velocities_and_efforts(folder: Path) -> None:
    kinds = (".pos", ".vel", ".effort")
    names = [name + kind for name in SHORT for kind in kinds]

    def interleave(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.stack([rows, rows * 50, rows * 0 + 900], axis=2).reshape(len(rows), -1)

    change(folder, names, interleave)
    assert_is_the_rig(folder, Reading())


def test_velocities_alone_are_no_joints(folder: Path) -> None:
    change(folder, [f"{name}.vel" for name in SHORT], lambda rows: rows)
    with pytest.raises(DataError, match=f"it lacks {JOINT_NAMES[0]}"):
        open_lerobot(folder)


@pytest.mark.parametrize("unit", ["deg", "percent"])
def test_a_stated_unit_becomes_radians(folder: Path, unit: str) -> None:
    change(folder, [*SHORT], percent if unit == "percent" else np.rad2deg)
    assert_is_the_rig(folder, Reading(unit=unit))  # type: ignore[arg-type]


def test_degrees_with_a_gripper_in_percent_are_read_by_two_units(folder: Path) -> None:
    change(
        folder, [*SHORT], lambda rows: np.hstack([np.rad2deg(rows)[:, :7], percent(rows)[:, 7:]])
    )
    assert_is_the_rig(folder, Reading(unit="deg", gripper_unit="percent"))


def test_degrees_are_refused_until_the_unit_is_stated(folder: Path) -> None:
    change(folder, [*SHORT], np.rad2deg)
    said = (
        r"observation.state: crane_x7_.* rad in row \d+, expected .* are in deg.*, say --unit deg"
    )
    with pytest.raises(DataError, match=said):
        open_lerobot(folder)[0]


def test_a_wrong_unit_is_refused_too(folder: Path) -> None:
    change(folder, [*SHORT], lambda rows: rows * 0 + [210, 0, 0, -150, 0, 0, 0, 10])
    with pytest.raises(DataError, match=r"pan_joint is 210.00 deg .*\(-157 … 157 deg\)"):
        open_lerobot(folder, reading=Reading(unit="deg"))[0]


def test_a_gripper_in_another_unit_names_its_own_flag(folder: Path) -> None:
    change(folder, [*SHORT], lambda rows: np.hstack([rows[:, :7], percent(rows)[:, 7:]]))
    with pytest.raises(DataError, match=r"gripper_finger_a_joint is .*, say --gripper-unit"):
        open_lerobot(folder)[0]


def test_joints_in_a_wrong_order_are_noticed_by_their_limits(folder: Path) -> None:
    """The elbow bends one way only, so another joint in its column goes beyond its limit."""
    change(folder, [*SHORT], lambda rows: rows * 0 + [0, 0, -1.5, 0.9, 0, 0, 0, 0])
    with pytest.raises(DataError, match=r"part_rotate_joint is 0.90 rad .*-2\.78 … 0\.00"):
        open_lerobot(folder)[0]


def test_reader_yaml_states_unit_and_camera_and_a_flag_overrides_it(folder: Path) -> None:
    change(folder, [*SHORT], np.rad2deg)
    (folder / "reader.yaml").write_text("unit: deg\ncamera: base\n")
    assert_is_the_rig(folder, Reading())
    with pytest.raises(DataError, match="has no camera"):
        open_source(folder, reading=Reading(camera="wrist"))
    (folder / "reader.yaml").write_text("units: deg\n")
    with pytest.raises(DataError, match="units is unknown; did you mean unit"):
        open_source(folder)


def test_a_unit_for_logs_or_bags_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mcap").write_bytes(b"")
    with pytest.raises(DataError, match="--unit is only for LeRobot data sets"):
        open_source(tmp_path, reading=Reading(unit="deg"))


def add_camera(folder: Path, name: str) -> None:
    """Give the data set a second camera: the first one's films under another name."""
    info = json.loads((folder / "meta/info.json").read_text())
    key = f"observation.images.{name}"
    info["features"][key] = info["features"]["observation.images.base"]
    (folder / "meta/info.json").write_text(json.dumps(info))
    film = "videos/{}/chunk-000/file-000.mp4"
    target = folder / film.format(key)
    target.parent.mkdir(parents=True)
    target.write_bytes((folder / film.format("observation.images.base")).read_bytes())
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    for column in list(table.column_names):
        if column.startswith("videos/observation.images.base/"):
            table = table.append_column(column.replace(".base/", f".{name}/"), table[column])
    pq.write_table(table, path)


def test_one_of_two_cameras_is_chosen_by_its_short_or_its_full_name(folder: Path) -> None:
    add_camera(folder, "wrist")
    assert open_lerobot(folder).camera == "observation.images.base"
    for name in ("wrist", "observation.images.wrist"):
        source = open_lerobot(folder, reading=Reading(camera=name))
        assert source.camera == "observation.images.wrist"
        assert np.abs(source[1].image(2).astype(int) - episode(1, 5).image(2)).max() <= 12


def test_convert_takes_camera_and_unit(folder: Path, tmp_path: Path) -> None:
    add_camera(folder, "wrist")
    change(folder, [*SHORT], np.rad2deg)
    target = tmp_path / "ours"
    stated = Reading(camera="wrist", unit="deg")
    assert convert(folder, target, "", resume=False, reading=stated) == 2
    assert_is_the_rig(target, Reading())


def test_validate_names_the_unit_and_passes_once_it_is_stated(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import argparse

    change(folder, [*SHORT], np.rad2deg)
    parser = argparse.ArgumentParser()
    validate.add_arguments(parser)
    assert validate.run(parser.parse_args([str(folder), "--json"])) == 1
    assert "say --unit deg" in capsys.readouterr().out
    validate.run(parser.parse_args([str(folder), "--json", "--unit", "deg"]))
    assert "--unit" not in capsys.readouterr().out
