"""Fine-tuning reads a LeRobot data set as its flags say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the train extra")

import training_rig as rig

from crane_x7_vla_rl.data.lerobot import LeRobotWriter
from crane_x7_vla_rl.data.loader.selection import EVERY_FRAME, Choice
from crane_x7_vla_rl.data.reading import AS_STATED, Reading
from crane_x7_vla_rl.training import cli
from crane_x7_vla_rl.training.config.loader import Layer, build
from crane_x7_vla_rl.training.errors import ConfigError, ExitCode
from crane_x7_vla_rl.training.sft import by_lerobot
from crane_x7_vla_rl.training.sft.config import SftConfig

OPENVLA = Layer("flags", {"backend": "openvla"})


def test_flags_of_fine_tuning_state_camera_and_unit() -> None:
    assert build(SftConfig, [OPENVLA]).data.reading == AS_STATED
    stated = {"data.camera": "wrist", "data.unit": "deg", "data.gripper_unit": "percent"}
    config = build(SftConfig, [OPENVLA, Layer("flags", stated)])
    assert config.data.reading == Reading("wrist", "deg", "percent")


def test_another_unit_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="rad or deg or percent"):
        build(SftConfig, [OPENVLA, Layer("flags", {"data.unit": "degrees"})])


def test_interventions_are_chosen_by_flags_and_a_weight_needs_both_kinds() -> None:
    assert build(SftConfig, [OPENVLA]).data.choice == EVERY_FRAME
    for stated, expected in (
        ({"data.interventions": "only"}, Choice("only")),
        ({"data.intervention_weight": 4.0}, Choice("with", 4.0)),
    ):
        assert build(SftConfig, [OPENVLA, Layer("flags", stated)]).data.choice == expected
    both = {"data.interventions": "without", "data.intervention_weight": 2.0}
    with pytest.raises(ConfigError, match="a weight needs both kinds of frames"):
        build(SftConfig, [OPENVLA, Layer("flags", both)])
    with pytest.raises(ConfigError, match="with or only or without"):
        build(SftConfig, [OPENVLA, Layer("flags", {"data.interventions": "some"})])
    with pytest.raises(ConfigError, match=r"intervention_weight"):
        build(SftConfig, [OPENVLA, Layer("flags", {"data.intervention_weight": 0.0})])


def test_lerobots_trainer_does_not_ignore_the_choice() -> None:
    wanted = {"backend": "lerobot", "policy.type": "act", "data.interventions": "only"}
    config = build(SftConfig, [Layer("flags", wanted)])
    with pytest.raises(ConfigError, match="--interventions: LeRobot has nothing like it"):
        by_lerobot.request(config, wanted)


def test_further_data_sets_are_learned_with_the_first(tmp_path: Path) -> None:
    alone, both = tmp_path / "alone", tmp_path / "both"
    rig.train(alone, "--max-steps", "1")
    rig.train(both, "--max-steps", "1", "--more-data", str(rig.other_data()))
    one, two = (
        json.loads((folder / "last" / "dataset_statistics.json").read_text())["crane_x7"]
        for folder in (alone, both)
    )
    assert two["num_trajectories"] == one["num_trajectories"] + 3
    assert two["num_transitions"] > one["num_transitions"]


def test_a_further_data_set_that_does_not_fit_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = tmp_path / "slow"
    with LeRobotWriter(slow, rig.FPS + 5, (rig.SIDE, rig.SIDE)) as writer:
        writer.add(replace(rig.episode(0), fps=rig.FPS + 5))
    for more, said in ((slow, "frames per second"), (tmp_path / "nothing", "--more-data")):
        words = rig.flags(tmp_path / "out", "--more-data", str(more))
        assert cli.main(["sft", *words]) == ExitCode.DATA
        assert said in capsys.readouterr().err
