"""The mean of checkpoints: of every file of weights, or an error that names what does not fit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest
import torch
import training_rig as rig
from places import ROOT
from safetensors.torch import load_file, save_file

from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.policies.load import load_policy
from crane_x7_vla_rl.policies.openvla.weights.loading import EMBEDDINGS, HEAD
from crane_x7_vla_rl.training.checkpoints.average import average
from crane_x7_vla_rl.training.errors import ConfigError, OutputError

pytestmark = pytest.mark.timeout(rig.PATIENCE_S)


@lru_cache(maxsize=1)
def trained() -> tuple[Path, Path]:
    """Two checkpoints with a chunk's head, of different updates of one run."""
    run = rig.workplace() / "average"
    rig.train(run, "--action-head", "l1", "--film", "--no-use-lora", "--max-steps", "4")
    first, last = (run / name for name in ("checkpoint-3", "checkpoint-final"))
    return first, last


def test_every_weight_is_the_mean_and_the_policy_drives(tmp_path: Path) -> None:
    one, two = trained()
    mean = average([one, two], tmp_path / "mean")
    kinds = ("action_head", "proprio_projector", "vision_backbone")
    for kind in kinds:
        a, b, found = (
            torch.load(next(folder.glob(f"{kind}--*")), weights_only=True)
            for folder in (one, two, mean)
        )
        assert found.keys() == a.keys()
        assert any(not torch.equal(a[key], b[key]) for key in a)
        assert all(torch.allclose(found[key], (a[key] + b[key]) / 2) for key in a)
    a, b, found = (load_file(folder / "model.safetensors") for folder in (one, two, mean))
    assert all(torch.allclose(found[key], (a[key] + b[key]) / 2) for key in a)
    assert any(not torch.equal(a[key], b[key]) for key in a)
    (chunk,) = load_policy("openvla", ModelOptions(path=str(mean))).predict([rig.observation()])
    assert chunk.position_rad.shape[1] == 8


def test_a_head_that_is_tied_and_left_out_counts_as_the_embeddings(tmp_path: Path) -> None:
    one, two = trained()
    shipped = tmp_path / "shipped"
    shutil.copytree(one, shipped)
    weights = load_file(shipped / "model.safetensors")
    del weights[HEAD]
    save_file(weights, shipped / "model.safetensors")
    found = load_file(average([shipped, two], tmp_path / "mean") / "model.safetensors")
    other = load_file(two / "model.safetensors")
    assert torch.allclose(found[HEAD], (weights[EMBEDDINGS] + other[HEAD]) / 2)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    one, two = trained()
    other = tmp_path / "other"
    shutil.copytree(two, other)
    weights = load_file(other / "model.safetensors")
    name = min(weights)
    save_file({**weights, name: torch.zeros(3)}, other / "model.safetensors")
    with pytest.raises(ConfigError, match=f"different models: {name} differs"):
        average([one, other], tmp_path / "mean")
    shutil.copyfile(two / "model.safetensors", other / "model.safetensors")
    next(other.glob("action_head--*")).unlink()
    with pytest.raises(ConfigError, match="only one of them has action_head"):
        average([one, other], tmp_path / "mean")
    (other / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match="not a readable file of tensors"):
        average([other, other], tmp_path / "mean")
    with pytest.raises(ConfigError, match=r"holds no model\.safetensors"):
        average([one, tmp_path], tmp_path / "mean")
    with pytest.raises(ConfigError, match="two checkpoints or more"):
        average([one], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
    with pytest.raises(OutputError, match="a new folder"):
        average([one, two], tmp_path)


def test_the_script_says_what_is_wrong(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "average-policies", tmp_path / "out", tmp_path],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert "two checkpoints or more" in done.stderr
