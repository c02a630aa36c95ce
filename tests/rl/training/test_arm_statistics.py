"""A model that has never seen this arm is trained with the arm's own statistics."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("mani_skill")

import rl_rig
import training_rig
from training_rig import observation

from crane_x7_vla_rl.actions import find_statistics
from crane_x7_vla_rl.data.base_statistics import MARGIN_RAD, SHIPPED, bounds
from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.policies.load import load_policy
from crane_x7_vla_rl.robot import ARM_DOF, HOME_RAD, LOWER_RAD, UPPER_RAD
from crane_x7_vla_rl.training import arm_statistics
from crane_x7_vla_rl.training.errors import ConfigError

BRIDGE = {"action": {"q01": [-0.03] * 7, "q99": [0.03] * 7, "mask": [True] * 6 + [False]}}
WIDE = {"q01": LOWER_RAD.tolist(), "q99": UPPER_RAD.tolist()}


def shipped() -> dict[str, Any]:
    return dict(json.loads(SHIPPED.read_text()))


def base_model(folder: Path) -> Path:
    """Return a small model with the files of openvla/openvla-7b: it knows other robots alone."""
    shutil.copytree(rl_rig.base(), folder)
    (folder / "dataset_statistics.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"norm_stats": {"bridge_orig": BRIDGE}})
    )
    return folder


@pytest.mark.parametrize("kind", ["action", "proprio"])
def test_shipped_statistics_cover_the_demonstrations_within_the_limits(kind: str) -> None:
    entry = shipped()["crane_x7"][kind]
    assert (entry["q01"], entry["q99"]) == bounds(entry["min"], entry["max"])
    low, high = np.array(entry["q01"]), np.array(entry["q99"])
    assert (low >= LOWER_RAD).all()
    assert (high <= UPPER_RAD).all()
    assert (low <= HOME_RAD).all()
    assert (high >= HOME_RAD).all()
    free = (low > LOWER_RAD)[:ARM_DOF]
    assert (np.array(entry["min"]) - low)[:ARM_DOF][free] == pytest.approx(MARGIN_RAD, abs=1e-4)


def test_a_base_model_learns_with_this_arms_statistics_and_its_checkpoint_drives(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, run = base_model(tmp_path / "base"), tmp_path / "run"
    with caplog.at_level(logging.INFO):
        rl_rig.train(run, "--sft-checkpoint", str(model), "--num-updates", "1")
    assert "its keys: bridge_orig): actions are scaled by those shipped" in caplog.text
    saved = json.loads((run / "last" / "dataset_statistics.json").read_text())
    assert saved["crane_x7"] == shipped()["crane_x7"]
    assert "bridge_orig" in saved
    policy = load_policy("openvla", ModelOptions(str(run / "last")))
    (chunk,) = policy.predict([observation()])
    scale = find_statistics(saved, "crane_x7")
    assert (scale.low <= chunk.position_rad).all()
    assert (chunk.position_rad <= scale.high).all()


def test_a_file_counts_more_than_what_the_model_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"mine": {"action": WIDE}}))
    known = {"mine": BRIDGE, "other": BRIDGE}
    found = arm_statistics.complete("acme/model", known, "mine", file)
    assert found == {"mine": {"action": WIDE}, "other": BRIDGE}
    assert "replaces the statistics mine of acme/model" in caplog.text
    assert arm_statistics.complete("acme/model", known, "mine") == known


def test_fine_tuning_takes_statistics_from_a_file(tmp_path: Path) -> None:
    run = tmp_path / "run"
    training_rig.train(run, "--statistics", str(SHIPPED), "--max-steps", "1")
    saved = json.loads((run / "last" / "dataset_statistics.json").read_text())
    assert saved["crane_x7"] == shipped()["crane_x7"]


def test_an_unknown_key_names_the_flag_that_sets_it() -> None:
    with pytest.raises(ConfigError) as caught:
        arm_statistics.complete("acme/model", {"bridge_orig": BRIDGE}, "crane_x8")
    assert "start.unnorm_key is crane_x8" in str(caught.value)
    assert "its keys: bridge_orig" in str(caught.value)
    assert "--unnorm-key" in str(caught.value)
    assert "VLA_UNNORM_KEY" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "expected an object"),
        ('{"bridge_orig": {}}', "has no key crane_x7; its keys: bridge_orig"),
        ('{"crane_x7": 3}', "no 'action' statistics"),
        ('{"crane_x7": {"action": {"q01": [1], "q99": [2]}}}', "has 1 dimensions, expected 8"),
        (json.dumps({"crane_x7": {"action": WIDE | {"q99": [90.0] * 8}}}), "in degrees"),
        (json.dumps({"crane_x7": {"action": WIDE | {"q99": [-9.0] * 8}}}), "q01 ≤ q99"),
        (json.dumps({"crane_x7": {"action": WIDE | {"q99": [float("nan")] * 8}}}), "finite"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "wrong.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=said) as caught:
        arm_statistics.read(file, "crane_x7")
    assert str(file) in str(caught.value)


def test_a_joint_that_never_moved_is_scaled_without_nan(tmp_path: Path) -> None:
    still = {"q01": HOME_RAD.tolist(), "q99": HOME_RAD.tolist()}
    file = tmp_path / "still.json"
    file.write_text(json.dumps({"crane_x7": {"action": still}}))
    scale = find_statistics({"crane_x7": arm_statistics.read(file, "crane_x7")}, "crane_x7")
    assert (scale.normalise(HOME_RAD + 0.1) == 0).all()
    np.testing.assert_array_equal(scale.unnormalise(np.ones(8)), HOME_RAD)
