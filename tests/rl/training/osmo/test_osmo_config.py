"""config.yaml and --override: the published keys, defaults and conversions, and clear errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

from crane_x7_vla_rl.fields import leaves
from crane_x7_vla_rl.training.config import loader
from crane_x7_vla_rl.training.errors import ConfigError
from crane_x7_vla_rl.training.lerobot.options import text
from crane_x7_vla_rl.training.osmo import act
from crane_x7_vla_rl.training.osmo.__main__ import main
from crane_x7_vla_rl.training.osmo.config import OsmoConfig, converted, read

FILES = ROOT / "configs/osmo"
PUBLISHED = {
    "training.steps": 5000, "training.batch_size": 4, "training.lr": 1e-5,
    "training.scheduler": "none", "training.warmup_steps": 500, "training.min_lr": 1e-7,
    "model.chunk_size": 100, "data.fps": 30, "wandb.enabled": False,
    "wandb.project": "ur10e-act-train", "wandb.run_name": None,
}  # fmt: skip
"""Of the tables of the published package."""


def words(*overrides: str) -> dict[str, Any]:
    return dict(act.request(read(None, overrides), Path("/data")).options)


def test_published_keys_have_the_published_defaults() -> None:
    mine = loader.flat(OsmoConfig())
    assert {key: mine[key] for key in PUBLISHED} == PUBLISHED


def test_config_yaml_lists_every_key_with_its_default_and_its_meaning() -> None:
    content = (FILES / "config.yaml").read_text(encoding="utf-8")
    layer = loader.read_file(FILES / "config.yaml")
    assert {*layer.values} == {leaf.key for leaf in leaves(OsmoConfig)}
    assert read(FILES / "config.yaml") == OsmoConfig()
    plain = re.sub(r"\n *# ", " ", content)
    assert all(" ".join(leaf.text.split()) in plain for leaf in leaves(OsmoConfig))


@pytest.mark.parametrize("path", sorted(FILES.glob("osmo-config*.yaml")), ids=lambda p: p.stem)
def test_a_workflows_configuration_is_right_and_names_the_containers_paths(path: Path) -> None:
    config = read(path)
    assert config.data.path == "/data/rosbags"
    assert config.output.dir == "/output/train-rosbag-act"
    assert config.training.steps == 5000


@pytest.mark.parametrize(
    ("written", "meant"),
    [("true", True), ("False", False), ("8", 8), ("-3", -3), ("5e-5", 5e-5), ("0.1", 0.1),
     ("1.0e-7", 1e-7), ("cosine", "cosine"), ("null", None), ("1.2.3", "1.2.3")],
)  # fmt: skip
def test_override_converts_as_published(written: str, meant: object) -> None:
    assert converted(written) == meant
    assert type(converted(written)) is type(meant)


def test_the_published_command_line_is_understood() -> None:
    config = read(FILES / "config.yaml", [
        "training.lr=5e-5", "training.batch_size=8", "model.chunk_size=50", "wandb.enabled=true",
        "wandb.run_name=sweep-custom-1",
    ])  # fmt: skip
    assert (config.training.lr, config.training.batch_size) == (5e-5, 8)
    assert (config.model.chunk_size, config.wandb.enabled) == (50, True)
    assert config.wandb.run_name == "sweep-custom-1"


def test_a_name_that_looks_like_a_number_stays_text_and_lists_are_lists() -> None:
    config = read(None, ["wandb.run_name=0042", 'wandb.tags=["osmo", sweep]', "data.joints=a,b"])
    assert config.wandb.run_name == "0042"
    assert config.wandb.tags == ("osmo", "sweep")
    assert config.data.joints == ("a", "b")


def test_yaml_reads_5e_5_as_text_and_we_as_a_number(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("training:\n  lr: 5e-5\n")
    assert read(file).training.lr == 5e-5


@pytest.mark.parametrize(
    ("override", "expected"),
    [("training.learning=1", "training.learning is unknown"),
     ("training.step=1", "training.step is unknown; did you mean steps?"),
     ("training.kl_weight=1", "training.kl_weight is unknown; did you mean model.kl_weight?"),
     ("training.lr=fast", "training.lr is 'fast', expected a number"),
     ("training.lr=0", "training.lr is 0.0, expected above 0"),
     ("training.batch_size=2.5", "training.batch_size is 2.5, expected a whole number"),
     ("training.scheduler=linear", "expected none or cosine"),
     ("wandb.enabled=yes", "wandb.enabled is 'yes', expected true or false"),
     ("training.lr", "--override training.lr: expected KEY=VALUE"),
     ("model.n_heads=7", "expected a multiple of model.n_heads (7)")],
)  # fmt: skip
def test_a_wrong_override_is_named(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(None, [override])
    assert expected in str(caught.value)


def test_a_warm_up_longer_than_the_training_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"warmup_steps is 500, expected less than .*steps .20"):
        read(None, ["training.steps=20", "training.scheduler=cosine"])
    assert read(None, ["training.steps=20"]).training.warmup_steps == 500


def test_a_constant_rate_is_lerobots_preset_with_one_rate_for_all() -> None:
    given = words("training.lr=5e-5", "model.kl_weight=1.0")
    assert given["policy.type"] == "act"
    assert (given["policy.optimizer_lr"], given["policy.optimizer_lr_backbone"]) == (5e-5, 5e-5)
    assert (given["policy.kl_weight"], given["policy.chunk_size"]) == (1.0, 100)
    assert "scheduler.type" not in given


def test_cosine_is_lerobots_schedule_over_the_whole_training() -> None:
    given = words("training.scheduler=cosine", "training.lr=5e-5", "training.steps=2000")
    assert given["use_policy_training_preset"] is False
    assert (given["optimizer.type"], given["optimizer.lr"]) == ("adamw", 5e-5)
    names = ("type", "num_warmup_steps", "num_decay_steps", "peak_lr", "decay_lr")
    assert [given[f"scheduler.{name}"] for name in names] == [
        "cosine_decay_with_warmup", 500, 2000, 5e-5, 1e-7,
    ]  # fmt: skip
    assert text(given["scheduler.peak_lr"]) == "5.0e-05", "YAML would read 5e-05 as text"


def test_no_more_processes_load_data_than_fit_into_the_shared_memory(
    caplog: pytest.LogCaptureFixture,
) -> None:
    info = {"features": {"observation.images.base": {"shape": [480, 640, 3]}, "action": {}}}
    config = read(None, ["training.num_workers=4", "training.batch_size=4"])
    assert act.workers(config, info, 8 << 30) == 4
    assert act.workers(config, info, None) == 4
    assert not caplog.records
    assert act.workers(config, info, 64 << 20) == 2, "a container's 64 MB"
    assert "/dev/shm has 67 MB free, enough for 2 processes" in caplog.text
    assert act.workers(config, info, 1 << 20) == 0
    assert act.request(config, Path("/data"), 2).options["num_workers"] == 2


def test_wandb_is_told_only_when_it_is_on() -> None:
    assert not any(key.startswith("wandb") for key in words())
    given = words("wandb.enabled=true", "wandb.entity=me")
    assert (given["wandb.project"], given["wandb.entity"]) == ("ur10e-act-train", "me")
    assert given["wandb.add_tags"] is False, "WANDB_TAGS has them"


def test_train_py_prints_the_configuration_and_refuses_with_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = str(FILES / "config.yaml")
    assert main(["train", "--config", file, "--override", "training.lr=5e-5", "--dry-run"]) == 0
    assert "lr: 5.0e-05" in capsys.readouterr().out
    assert main(["train", "--config", file, "--override", "training.lrr=1"]) == 3
    said = capsys.readouterr().err
    assert "training.lrr is unknown; did you mean lr?" in said
    assert "Traceback" not in said
