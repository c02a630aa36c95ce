"""Fine-tuning reads a LeRobot data set as its flags say."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs the train extra")

from crane_x7_vla_rl.data.reading import AS_STATED, Reading
from crane_x7_vla_rl.training.config.loader import Layer, build
from crane_x7_vla_rl.training.errors import ConfigError
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
