"""Recordings of each kind become a LeRobot data set that says the same."""

from __future__ import annotations

import argparse
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from rosbags_rig import Scene, write_bag
from tfrecord_rig import logger_steps, picture, write_log

from crane_x7_vla_rl.data import convert as convert_command
from crane_x7_vla_rl.data.convert import add_arguments, run
from crane_x7_vla_rl.data.episode import DataError, EpisodeError
from crane_x7_vla_rl.data.source import open_source
from crane_x7_vla_rl.policies.base import PolicyLoadError
from crane_x7_vla_rl.sim.errors import SimError, WorkerLostError
from crane_x7_vla_rl.training import cli
from crane_x7_vla_rl.training.errors import ExitCode, OutputError


def convert(source: Path, folder: Path, *flags: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(source), str(folder), *flags]))


@pytest.mark.parametrize("kind", ["logs", "bags"])
def test_a_converted_data_set_says_the_same(tmp_path, kind):
    for number in range(2):
        if kind == "logs":
            write_log(tmp_path / kind, number, logger_steps(8 + number, seed=number))
        else:
            write_bag(tmp_path / kind / f"{number}", Scene(seconds=1 + number).sent())
    assert convert(tmp_path / kind, tmp_path / "lerobot") == 0
    before, after = open_source(tmp_path / kind), open_source(tmp_path / "lerobot")
    assert (after.fps, after.lengths.tolist()) == (before.fps, before.lengths.tolist())
    for index in range(2):
        np.testing.assert_array_equal(after[index].state, before[index].state)
        np.testing.assert_array_equal(after[index].action, before[index].action)
        assert after[index].instruction == before[index].instruction == "pick up the red cube"
        ours, theirs = after[index].image(5).astype(int), before[index].image(5).astype(int)
        assert np.abs(ours - theirs).mean() < 8


def test_a_broken_episode_stops_it_and_it_goes_on_when_that_is_repaired(tmp_path):
    for number in range(3):
        steps = logger_steps(6, seed=number)
        if number == 1:
            steps[4] = steps[4] | {"observation/image_primary": [picture(0)[:200]]}
        write_log(tmp_path / "logs", number, steps)
    with pytest.raises(DataError, match=r"episode_0001.*frame 4: JPEG of 200 bytes"):
        convert(tmp_path / "logs", tmp_path / "lerobot")
    with pytest.raises(DataError, match="holds a data set already"):
        convert(tmp_path / "logs", tmp_path / "lerobot")
    write_log(tmp_path / "logs", 1, logger_steps(6, seed=1))
    assert convert(tmp_path / "logs", tmp_path / "lerobot", "--resume") == 0
    before, after = open_source(tmp_path / "logs"), open_source(tmp_path / "lerobot")
    assert len(after) == 3
    for index in range(3):
        np.testing.assert_array_equal(after[index].action, before[index].action)


def test_each_kind_of_failure_ends_with_its_exit_code(tmp_path, capsys, monkeypatch):
    argv = ["convert", str(tmp_path / "none"), str(tmp_path / "lerobot")]
    assert cli.main(argv) == ExitCode.DATA
    assert "convert: " in capsys.readouterr().err
    for error, code in (
        (EpisodeError("one"), ExitCode.DATA),
        (SimError("no Vulkan"), ExitCode.SIMULATION),
        (WorkerLostError("gone"), ExitCode.SIMULATION),
        (PolicyLoadError("no weights"), ExitCode.POLICY_LOAD),
        (OutputError("full"), ExitCode.OUTPUT),
    ):
        monkeypatch.setattr(convert_command, "convert", Mock(side_effect=error))
        assert cli.main(argv) == code
        assert str(error) in capsys.readouterr().err
    monkeypatch.setattr(convert_command, "convert", Mock(side_effect=ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        cli.main(argv)
