"""Fine-tuning reads a LeRobot data set as its flags say."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs the train extra")

from crane_x7_vla_rl.data.loader.selection import EVERY_FRAME, Choice
from crane_x7_vla_rl.data.reading import AS_STATED, Reading
from crane_x7_vla_rl.training.config.loader import Layer, build
from crane_x7_vla_rl.training.errors import ConfigError
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
