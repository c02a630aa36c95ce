"""A merged model says what the adapter and its base say together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import training_rig as rig

from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.policies.load import load_policy
from crane_x7_vla_rl.policies.openvla.weights import loading
from crane_x7_vla_rl.policies.skills import Skills
from crane_x7_vla_rl.training import cli
from crane_x7_vla_rl.training.errors import ExitCode


def test_the_merged_model_needs_no_base_and_answers_alike(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(rig.base(), base)
    rig.train(
        tmp_path / "run", "--model", str(base), "--learning-rate", "1e-2", "--chunk-steps", "2"
    )
    last = tmp_path / "run" / "last"
    wanted = load_policy("openvla", ModelOptions(path=str(last))).predict([rig.observation()])
    assert cli.main(["merge", str(last), str(tmp_path / "merged"), "--dtype", "fp32"]) == 0
    beside = loading.load(last).model
    shutil.rmtree(base)
    shutil.rmtree(tmp_path / "run")
    merged = loading.load(tmp_path / "merged")
    for name, tensor in beside.state_dict().items():
        assert torch.equal(tensor, merged.model.state_dict()[name]), name
    assert merged.model.crop
    assert merged.model.norm_stats == beside.norm_stats
    found = load_policy("openvla", ModelOptions(path=str(tmp_path / "merged")))
    (chunk,) = found.predict([rig.observation()])
    assert np.array_equal(chunk.position_rad, wanted[0].position_rad)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "random_weights" not in config


def test_merged_weights_are_bfloat16_unless_told_otherwise(tmp_path: Path) -> None:
    assert cli.main(["merge", str(rig.base()), str(tmp_path / "merged")]) == 0
    size = (tmp_path / "merged" / "model.safetensors").stat().st_size
    assert 0.45 < size / (rig.base() / "model.safetensors").stat().st_size < 0.55


def test_an_existing_folder_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["merge", str(rig.base()), str(tmp_path)]) == ExitCode.OUTPUT
    assert "exists; merge writes a new folder" in capsys.readouterr().err


def test_what_the_policy_can_do_comes_along(tmp_path: Path) -> None:
    base = shutil.copytree(rig.base(), tmp_path / "base")
    skills = Skills("Lift-CRANE-X7", ("red", "blue"), 0.02, ("pick up the red cube",), 5.0, 1.0)
    skills.write(base)
    assert cli.main(["merge", str(base), str(tmp_path / "merged")]) == 0
    assert Skills.beside(tmp_path / "merged") == skills
