"""OpenVLA-OFT checkpoints: whoever trains or rewrites one keeps its heads, or refuses it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import oft_rig
import pytest
import rl_rig
import torch
import training_rig

from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.policies.load import load_policy
from crane_x7_vla_rl.robot import HOME_RAD
from crane_x7_vla_rl.training import cli
from crane_x7_vla_rl.training.errors import ExitCode
from crane_x7_vla_rl.types import JointState, Observation

HEAD = "action_head--7_checkpoint.pt"


@pytest.fixture
def oft(tmp_path: Path) -> Path:
    return oft_rig.write_for_arm(tmp_path / "oft")


def with_head(base: Path, folder: Path) -> Path:
    """Return a copy of a checkpoint of tokens with an action head beside it."""
    shutil.copytree(base, folder, copy_function=shutil.copyfile)
    torch.save({}, folder / HEAD)
    return folder


def adapted(base: Path, folder: Path) -> Path:
    return oft_rig.write_adapter(folder, base)


def test_sft_of_tokens_refuses_one_as_its_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = with_head(training_rig.base(), tmp_path / "oft")
    words = training_rig.flags(
        tmp_path / "run", "--max-steps", "1", "--model", str(model), "--action-head", "tokens"
    )
    assert cli.main(["sft", *words]) == ExitCode.CONFIG
    assert "is an OpenVLA-OFT checkpoint: its actions come from a head" in capsys.readouterr().err


def test_train_refuses_one_whose_head_is_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = with_head(rl_rig.base(), tmp_path / "oft")
    words = rl_rig.flags(tmp_path / "run", "--num-updates", "1", "--sft-checkpoint", str(model))
    assert cli.main(["train", *words]) == ExitCode.POLICY_LOAD
    assert f"{model / HEAD}: model.fc2.bias is missing" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_train_takes_the_heads_of_an_adapter_along(tmp_path: Path) -> None:
    base = rl_rig.chunk_base()
    model = adapted(base, tmp_path / "adapter")
    rl_rig.train(tmp_path / "run", "--num-updates", "1", "--sft-checkpoint", str(model))
    assert (tmp_path / "run/base/action_head--0_checkpoint.pt").is_file()
    one, two = (
        torch.load(next(folder.glob("action_head--*")), weights_only=True)
        for folder in (base, tmp_path / "run/last")
    )
    moved = max(float((one[key] - two[key]).abs().max()) for key in one)
    assert 0 < moved < 0.01, "it continues from the adapter's head"


@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_merge_takes_the_heads_along(oft: Path, tmp_path: Path, kind: str) -> None:
    source = oft if kind == "whole" else adapted(oft, tmp_path / "run" / "lora_adapter")
    merged = tmp_path / "merged"
    assert cli.main(["merge", str(source), str(merged), "--dtype", "fp32"]) == 0
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    joints = HOME_RAD + np.array([0.3, 0.4, 0.2, 0.3, -0.1, -0.2, 0.1, 0.2])
    seen = Observation(image, JointState(joints, np.zeros(8)), "pick up the red cube", 0.0)
    wanted, found = (
        load_policy(
            "openvla",
            ModelOptions(str(folder), unnorm_key=oft_rig.KEY, chunk_steps=oft_rig.STEPS),
        ).predict([seen])[0].position_rad
        for folder in (oft, merged)
    )  # fmt: skip
    assert found.shape == (oft_rig.STEPS, 8)
    np.testing.assert_array_equal(found, wanted)


def test_macos_side_files_are_no_heads(oft: Path, tmp_path: Path) -> None:
    names = [path.name for path in oft.iterdir() if path.is_file()]
    for name in names:
        (oft / f"._{name}").write_bytes(b"\0\5\x16\7 Mac OS X")
    assert cli.main(["merge", str(oft), str(tmp_path / "merged"), "--dtype", "fp32"]) == 0
    found = {path.name for path in (tmp_path / "merged").iterdir()}
    assert not {name for name in found if name.startswith(".")}
    assert {name for name in names if name.endswith("_checkpoint.pt")} <= found


def test_training_refuses_one_whose_head_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = with_head(rl_rig.base(), tmp_path / "oft")
    (model / HEAD).rename(model / "proprio_projector--7_checkpoint.pt")
    words = rl_rig.flags(tmp_path / "run", "--num-updates", "1", "--sft-checkpoint", str(model))
    assert cli.main(["train", *words]) == ExitCode.POLICY_LOAD
    assert f"{model} holds no action_head--<step>_checkpoint.pt" in capsys.readouterr().err
