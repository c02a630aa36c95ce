"""The loop's settings: the checkpoint's, overridden by variables and flags with a warning."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import pytest

from crane_x7_remote import settings as settings_module
from crane_x7_remote.errors import PolicyError
from crane_x7_remote.inference import checkpoint
from crane_x7_remote.sim_robot import command as sim_command
from crane_x7_vla_rl.policies.load import TINY
from crane_x7_vla_rl.policies.skills import Skills

MODEL = {"VLA_MODEL_PATH": str(TINY)}


def test_rate_temperature_and_jump_are_the_checkpoints(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    settings = checkpoint.apply(settings_module.load(environ=MODEL))
    assert (settings.vla_inference_rate, settings.vla_temperature) == (1.6, 1.0)
    assert settings.max_jump == 1.6
    assert settings.trajectory_validity == pytest.approx(2 / 1.6)
    (record,) = caplog.records
    assert "VLA_INFERENCE_RATE 1.6 (skills.json), VLA_TEMPERATURE 1" in record.message


def test_a_variable_counts_more_and_its_contradiction_is_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    environ = MODEL | {"VLA_INFERENCE_RATE": "10", "MAX_JUMP": "0.5", "TRAJECTORY_VALIDITY": "0.7"}
    settings = checkpoint.apply(settings_module.load(environ=environ))
    assert (settings.vla_inference_rate, settings.max_jump) == (10, 0.5)
    assert (settings.vla_temperature, settings.trajectory_validity) == (1.0, 0.7)
    (warning,) = [one for one in caplog.records if one.levelname == "WARNING"]
    assert "VLA_INFERENCE_RATE 10: the checkpoint says 1.6 (skills.json)" in warning.message


def test_a_checkpoint_widens_limits_only_so_far(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reckless = Skills("Lift-CRANE-X7", ("red",), 0.0, ("lift it",), 0.1, max_jump_rad=9.0)
    reckless.write(tmp_path)
    environ = {"VLA_MODEL_PATH": str(tmp_path)}
    settings = checkpoint.apply(settings_module.load(environ=environ))
    assert (settings.max_jump, settings.trajectory_validity) == (2.0, 2.0)
    warnings = [one.message for one in caplog.records if one.levelname == "WARNING"]
    assert len(warnings) == 2
    assert "MAX_JUMP: the checkpoint needs 9, but its files can set at most 2" in warnings[0]
    assert "MAX_JUMP=9" in warnings[0]
    assert "TRAJECTORY_VALIDITY=20" in warnings[1]
    caplog.clear()
    given = environ | {"MAX_JUMP": "9", "TRAJECTORY_VALIDITY": "20"}
    settings = checkpoint.apply(settings_module.load(environ=given))
    assert (settings.max_jump, settings.trajectory_validity) == (9.0, 20.0)
    assert not [one for one in caplog.records if one.levelname == "WARNING"]


def test_a_checkpoint_that_says_nothing_leaves_the_defaults(tmp_path: Path) -> None:
    settings = settings_module.load(environ={"VLA_MODEL_PATH": str(tmp_path)})
    assert checkpoint.apply(settings) == settings


def test_the_device_is_found_unless_it_is_given() -> None:
    assert settings_module.load(environ={}).vla_device == "auto"
    assert settings_module.load(environ={"VLA_DEVICE": "cuda"}).vla_device == "cuda"


def scene(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    sim_command.add_arguments(parser)
    args = parser.parse_args(words)
    sim_command._read_scene(args)
    return args


def test_the_simulated_robot_takes_the_scene_of_a_checkpoint(tmp_path: Path) -> None:
    args = scene("--scene-of", str(TINY))
    assert (args.task, args.colours) == ("Lift-CRANE-X7", ("red", "blue"))
    assert args.spawn_range_m == 0.02
    assert scene("--scene-of", str(TINY), "--colours", "red").colours == ["red"]
    assert scene().task == "PickPlace-CRANE-X7"
    with pytest.raises(PolicyError, match="its scene is unknown"):
        scene("--scene-of", str(tmp_path))


def test_an_image_without_the_hubs_package_leaves_the_answer_to_loading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def without_package(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'huggingface_hub'", name="huggingface_hub")

    monkeypatch.setattr(checkpoint.about, "said_by", without_package)
    settings = settings_module.load(environ={"VLA_MODEL_PATH": "owner/name"})
    assert checkpoint.apply(settings) is settings
