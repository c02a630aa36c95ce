"""A checkpoint's small files decide how it is used, unless the user does; no weights are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crane_x7_vla_rl.data.demos.config import CONFIG
from crane_x7_vla_rl.policies import about
from crane_x7_vla_rl.policies.about import Said
from crane_x7_vla_rl.policies.base import PolicyLoadError
from crane_x7_vla_rl.policies.load import TINY
from crane_x7_vla_rl.policies.skills import Skills

TRAINED = """
env: {env_id: PickPlace-CRANE-X7, colours: "red,green", image_size: 320x240, spawn_range_m: 0.01,
      camera_noise: 2.0, num_parallel_envs: 64}
evaluation: {temperature: 0.5}
"""


def said(folder: Path) -> dict[str, object]:
    return {name: one.value for name, one in about.said_by(folder).items()}


def test_the_shipped_policy_says_scene_camera_rate_temperature_and_jump() -> None:
    found = said(TINY)
    assert "pick up the red cube" in found.pop("instructions")  # type: ignore[operator]
    assert found == {
        "task": "Lift-CRANE-X7", "colours": ("red", "blue"), "spawn_range_m": 0.02,
        "image_size": (320, 240), "rate_hz": 1.6, "temperature": 1.0, "max_jump_rad": 1.6,
        "lets_go": False,
    }  # fmt: skip


def test_the_configuration_of_a_run_says_in_which_scene_it_learned(tmp_path: Path) -> None:
    (tmp_path / "train_config.yaml").write_text(TRAINED)
    (tmp_path / "policy.json").write_text('{"period_s": 0.2}')
    assert said(tmp_path) == {
        "task": "PickPlace-CRANE-X7", "colours": ("red", "green"), "image_size": (320, 240),
        "spawn_range_m": 0.01, "camera_noise": 2.0, "temperature": 0.5, "rate_hz": 5.0,
    }  # fmt: skip


def test_a_lerobot_checkpoint_says_its_rate_whichever_of_its_folders_is_named(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "checkpoints" / "000010" / "pretrained_model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"type": "act", "input_features": {}}')
    header = b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    content = len(header).to_bytes(8, "little") + header + b"0"
    (folder / "model.safetensors").write_bytes(content)
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        (folder / name).write_text("{}")
    for period_s, rate_hz in (("0.2", 5.0), ("0.02", 10.0)):
        (folder / "policy_io.yaml").write_text(f"action: {{period_s: {period_s}}}")
        for named in (tmp_path, folder.parent, folder):
            assert said(named) == {"rate_hz": pytest.approx(rate_hz)}
    (folder / "policy_io.yaml").write_text("[]")
    assert said(folder) == {}


def test_a_fine_tuned_checkpoint_says_the_scene_of_its_demonstrations(tmp_path: Path) -> None:
    world = {"task": "PickPlace-CRANE-X7", "image_size": [320, 240], "colours": ["red", "blue"]}
    (tmp_path / "demos.json").write_text(json.dumps({"first_seed": 0, "world": world}))
    (tmp_path / "train_config.yaml").write_text("backend: openvla\n")
    found = about.said_by(tmp_path)
    assert found["task"] == Said("PickPlace-CRANE-X7", "demos.json")
    assert found["image_size"] == Said((320, 240), "demos.json")
    assert found["colours"] == Said(("red", "blue"), "demos.json")
    assert about.DEMOS == CONFIG
    for broken in ("{", '{"world": {"task": 5}}', "[]"):
        (tmp_path / "demos.json").write_text(broken)
        with pytest.raises(PolicyLoadError, match=r"demos\.json"):
            about.said_by(tmp_path)


def test_skills_count_more_than_the_configuration_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "train_config.yaml").write_text(TRAINED)
    Skills("Lift-CRANE-X7", ("blue",), 0.02, ("lift it",), 2.0).write(tmp_path)
    found = about.said_by(tmp_path)
    assert found["task"] == Said("Lift-CRANE-X7", "skills.json")
    assert found["image_size"] == Said((320, 240), "train_config.yaml")


def test_steps_close_together_do_not_make_the_loop_faster_than_its_default(tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text('{"period_s": 0.05}')
    assert said(tmp_path) == {"rate_hz": 10.0}


def test_a_checkpoint_that_says_nothing_leaves_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "train_config.yaml").write_text("backend: openvla\n")
    assert said(tmp_path) == {}
    assert said(tmp_path / "none") == {}


def test_a_value_that_cannot_be_is_named_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "train_config.yaml").write_text("env: {env_id: Pour}")
    with pytest.raises(PolicyLoadError, match=r"train_config\.yaml: env\.env_id is Pour, expected"):
        about.said_by(tmp_path)


def test_what_is_given_counts_and_a_contradiction_is_said() -> None:
    stated = {
        "task": Said("PickPlace-CRANE-X7", "train_config.yaml"),
        "temperature": Said(1.0, "s"),
    }
    given = {"task": "Lift-CRANE-X7", "temperature": 1.0}
    flags = {"task": "--task", "temperature": "--temperature"}
    chosen = about.choose(given, stated, {"task": "x", "temperature": 0.0, "other": 3}, flags)
    assert chosen.values == {"task": "Lift-CRANE-X7", "temperature": 1.0, "other": 3}
    assert chosen.sources == {"task": "given", "temperature": "given", "other": "default"}
    assert chosen.contradictions == (
        "--task Lift-CRANE-X7: the checkpoint was trained on PickPlace-CRANE-X7"
        " (train_config.yaml)",
    )
