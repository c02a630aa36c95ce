"""Demonstrations from the real simulation, written as a LeRobot data set."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the train extra")

from crane_x7_vla_rl.data.demos.command import generate
from crane_x7_vla_rl.data.demos.config import DemosConfig, DemosReport
from crane_x7_vla_rl.data.demos.files import DemoFiles
from crane_x7_vla_rl.data.demos.recorder import DemoRecorder
from crane_x7_vla_rl.data.episode import DataError, Episode
from crane_x7_vla_rl.data.files import read_json
from crane_x7_vla_rl.data.lerobot import open_lerobot
from crane_x7_vla_rl.data.lerobot.metadata import read_rows
from crane_x7_vla_rl.robot import HOME_RAD
from crane_x7_vla_rl.scenes import EVALUATION_SEED, WorldConfig
from crane_x7_vla_rl.sim.expert import FURTHEST_M
from crane_x7_vla_rl.sim.layout import Arrangement
from crane_x7_vla_rl.sim.world import World
from crane_x7_vla_rl.training import cli
from crane_x7_vla_rl.training.errors import ExitCode

WORLD = WorldConfig(control_hz=5, image_size=(64, 64), colours=("red", "blue"))
FLAGS = ["--control-hz", "5", "--image-size", "64x64", "--colours", "red", "blue"]


def config(folder: Path, **options: object) -> DemosConfig:
    return DemosConfig(folder, **({"episodes": 4, "world": WORLD, "processes": 2} | options))


def demos(folder: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "crane_x7_vla_rl.training.cli", "demos", str(folder)]
    return subprocess.Popen(
        [*command, *FLAGS, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def episodes(folder: Path) -> list[Episode]:
    source = open_lerobot(folder)
    return [source[index] for index in range(len(source))]


def test_seeds_in_order_whatever_the_processes(tmp_path: Path) -> None:
    assert generate(config(tmp_path / "two")) == DemosReport(4, 0)
    generate(config(tmp_path / "one", processes=1))
    for ours, theirs in zip(episodes(tmp_path / "two"), episodes(tmp_path / "one"), strict=True):
        assert ours.seed == theirs.seed
        assert ours.instruction == theirs.instruction
        np.testing.assert_allclose(ours.state[0], theirs.state[0], atol=1e-5)
        np.testing.assert_allclose(ours.action[0], theirs.action[0], atol=1e-4)
    found = episodes(tmp_path / "two")
    assert [episode.seed for episode in found] == [0, 1, 2, 3]
    assert {episode.fps for episode in found} == {5.0}
    assert all(episode.success for episode in found)
    assert {episode.instruction for episode in found} == {
        "pick up the red cube",
        "pick up the blue cube",
    }
    assert not (tmp_path / "two.failures").exists()


def test_an_episode_shows_the_arm_before_each_action(tmp_path: Path) -> None:
    recorder = DemoRecorder(config(tmp_path))
    episode = recorder(3)
    np.testing.assert_allclose(episode.state[0], HOME_RAD, atol=0.1)
    assert episode.image(0).shape == (64, 64, 3)
    assert not np.array_equal(episode.image(0), episode.image(len(episode) - 1))
    # What is commanded is where the arm has gone by the next frame, give or take its lag.
    moved = np.abs(episode.state[1:, :7] - episode.state[:-1, :7]).max()
    missed = np.abs(episode.state[1:, :7] - episode.action[:-1, :7]).max()
    assert missed < moved / 3


def test_noise_moves_the_arm_and_the_camera_not_the_lesson(tmp_path: Path) -> None:
    calm = DemoRecorder(config(tmp_path))(5)
    noisy = DemoRecorder(config(tmp_path, joint_noise_rad=0.08))(5)
    np.testing.assert_array_equal(calm.action[0], noisy.action[0])
    assert np.abs(calm.state[1] - noisy.state[1]).max() > 0.005
    assert noisy.success
    shaken = replace(WORLD, camera_noise=8.0)
    grain = DemoRecorder(config(tmp_path, world=shaken))(5).image(0).astype(int) - calm.image(0)
    assert 4 < grain.std() < 10
    moved = replace(WORLD, camera_shift_m=0.05)
    views = DemoRecorder(config(tmp_path, world=moved))
    view = views(5).image(0)
    assert not np.array_equal(view, calm.image(0))
    assert np.array_equal(view, views(5).image(0)), "the seed decides the shift"


def test_killed_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with demos(tmp_path / "d", "--episodes", "400") as process:
        deadline = time.monotonic() + 100
        while not any((tmp_path / "d").rglob("episode-*")):
            assert time.monotonic() < deadline, "nothing was written"
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGKILL)
    with demos(tmp_path / "d", "--episodes", "5", "--resume") as process:
        output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    found = episodes(tmp_path / "d")
    assert len(found) >= 5
    assert [episode.seed for episode in found] == list(range(len(found)))
    assert f"{len(found)} demonstrations" in output


def test_failures_lie_apart_and_too_many_are_an_error(tmp_path: Path) -> None:
    hopeless = replace(WORLD, spawn_range_m=0.0)
    with pytest.raises(DataError, match=r"the expert failed in \d+ of \d+ scenes.*less noise"):
        generate(config(tmp_path / "d", episodes=200, joint_noise_rad=40.0, world=hopeless))
    # Only the rows: with so much noise the joints are where no reader believes them to be.
    failures = read_rows(tmp_path / "d.failures", read_json(tmp_path / "d.failures/meta/info.json"))
    assert len(failures) > 10
    assert not any(row["success"] for row in failures)
    seeds = {row["seed"] for row in failures}
    assert len(seeds) == len(failures)


def test_what_cannot_be_resumed_is_refused_with_its_reason(tmp_path: Path) -> None:
    generate(config(tmp_path / "d", episodes=1))
    with pytest.raises(DataError, match="holds a data set already"):
        generate(config(tmp_path / "d"))
    with pytest.raises(DataError, match=r"joint_noise_rad was 0\.0, now 0\.1"):
        generate(config(tmp_path / "d", joint_noise_rad=0.1), resume=True)
    before = json.loads((tmp_path / "d/demos.json").read_text())
    assert generate(config(tmp_path / "d", episodes=1), resume=True) == DemosReport(1, 0)
    assert json.loads((tmp_path / "d/demos.json").read_text()) == before


def test_a_data_set_may_be_the_folder_one_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (".", "~/home"):
        with DemoFiles(DemosConfig(Path(name), episodes=1), resume=False) as files:
            assert files.successes == 0
    assert {path.parent.name for path in tmp_path.glob("*/demos.json")} == {"here", "home"}


def test_a_policy_that_is_not_there_is_named_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["demos", str(tmp_path / "demos"), "--from", str(tmp_path / "none")]
    assert cli.main(words) == ExitCode.POLICY_LOAD
    said = capsys.readouterr().err
    assert "--from" in said
    assert "Traceback" not in said
    assert not (tmp_path / "demos").exists()


def test_seeds_of_the_evaluation_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="reserved for evaluation"):
        generate(config(tmp_path / "d", first_seed=EVALUATION_SEED))


@pytest.mark.parametrize(
    "flags",
    [
        ["--image-size", "big"],
        ["--episodes", "0"],
        ["--task", "Juggle-CRANE-X7"],
        ["--joint-noise-rad", "-1"],
        ["--arm-rad-s", "0"],
        ["--rearrange", "-1"],
        ["--spawn-range-m", "inf"],
    ],
)
def test_a_wrong_flag_is_a_usage_error(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["demos", str(tmp_path / "d"), *FLAGS, *flags])
    assert caught.value.code == 2
    assert flags[0] in capsys.readouterr().err


def test_a_rearranged_scene_gives_more_to_look_at(tmp_path: Path) -> None:
    plain = DemoRecorder(config(tmp_path))(4)
    recorder = DemoRecorder(config(tmp_path, rearrange=6))
    episode = recorder(4)
    assert episode.success
    assert len(episode) > len(plain)
    np.testing.assert_array_equal(episode.image(0), plain.image(0))
    assert not np.array_equal(episode.image(1), plain.image(1))
    again = recorder(4)
    np.testing.assert_array_equal(again.action, episode.action)


def test_the_expert_goes_on_holding_what_it_lifted(tmp_path: Path) -> None:
    plain = DemoRecorder(config(tmp_path))(4)
    held = DemoRecorder(config(tmp_path, hold_s=1.0))(4)
    assert held.success
    assert len(held) == len(plain) + 5
    np.testing.assert_array_equal(held.action[: len(plain)], plain.action)
    assert np.ptp(held.state[-3:, 7]) < 0.05  # around the cube


def test_a_data_set_from_before_there_was_a_hold_resumes_without_one(tmp_path: Path) -> None:
    generate(config(tmp_path / "demos", episodes=1))
    path = tmp_path / "demos" / "demos.json"
    path.write_text(json.dumps({k: v for k, v in read_json(path).items() if k != "hold_s"}))
    assert generate(config(tmp_path / "demos", episodes=2), resume=True) == DemosReport(2, 0)
    with pytest.raises(DataError, match=r"hold_s was 0.0, now 1.0"):
        generate(config(tmp_path / "demos", episodes=3, hold_s=1.0), resume=True)


def test_how_a_scene_is_rearranged() -> None:
    world = World(WORLD)
    world.reset(4)
    random = np.random.default_rng(0)

    def at(colour: str) -> tuple[float, float, float]:
        position: tuple[float, float, float] = world.scene.cube_status()[colour].position_m
        return position

    red, blue = at("red"), at("blue")
    world.rearrange(random, Arrangement.EXCHANGED)
    assert at("red") == pytest.approx(blue, abs=1e-4)
    assert at("blue") == pytest.approx(red, abs=1e-4)
    for _ in range(6):
        world.rearrange(random, Arrangement.SORTED)
        assert at("red")[1] < at("blue")[1]
    world.rearrange(random, Arrangement.ALONE)
    named = world.named_colour
    other = "blue" if named == "red" else "red"
    assert np.hypot(*at(named)[:2]) < FURTHEST_M
    assert np.hypot(*at(other)[:2]) > 2 * FURTHEST_M
    world.step(HOME_RAD)
    assert at(other)[2] > 0  # on the table
    world.close()
