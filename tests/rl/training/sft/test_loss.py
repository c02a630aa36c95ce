"""What fine-tuning minimises: the demonstrated bin's probability, or that of a bell around it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for package in ("safetensors", "tokenizers", "accelerate", "peft"):
    pytest.importorskip(package, reason="needs the train extra")

import training_rig as rig

from crane_x7_vla_rl.actions import FIRST_ACTION_TOKEN
from crane_x7_vla_rl.data.lerobot.writer import LeRobotWriter
from crane_x7_vla_rl.policies.openvla.codec import PolicySpec
from crane_x7_vla_rl.policies.openvla.run.evaluate import evaluate
from crane_x7_vla_rl.policies.openvla.weights import loading
from crane_x7_vla_rl.policies.openvla.weights.layout import POLICY
from crane_x7_vla_rl.training.schedule import smoothing
from crane_x7_vla_rl.training.sft.loss import TokenLoss, gaussian_targets


def test_the_bell_stands_over_the_demonstrated_bin() -> None:
    bins = np.array([[0, 1, 128, 255]])
    found = gaussian_targets(torch.from_numpy(bins + FIRST_ACTION_TOKEN), 4.0)
    assert found.shape == (1, 4, 256)
    np.testing.assert_allclose(found.sum(-1).numpy(), 1, atol=1e-6)
    assert found.argmax(-1).tolist() == bins.tolist()
    middle = found[0, 2].double().numpy()
    np.testing.assert_allclose(middle[128 - 40 : 128], middle[129 : 129 + 40][::-1], atol=1e-7)
    offsets = np.arange(256) - 128
    assert np.sqrt(np.sum(middle * offsets**2)) == pytest.approx(4.0, rel=1e-3)
    assert found[0, 0, 0] == pytest.approx(float(found[0, 3, 255]))


def test_the_bell_narrows_until_the_middle_of_the_run() -> None:
    assert [smoothing(step, 8, 6.0) for step in range(8)] == [6.0, 4.5, 3.0, 1.5, 0, 0, 0, 0]
    assert smoothing(3, 8, 0.0) == 0.0


@pytest.mark.parametrize("width", [0.0, 2.5])
def test_the_loss_is_the_cross_entropy_with_the_bell(width: float) -> None:
    model = loading.load(rig.base()).model.eval()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(3, 6, rig.SIDE, rig.SIDE, generator=generator)
    prompts = [torch.tensor([1, 5, 6, 7])] * 3
    tokens = torch.randint(256, (3, 8), generator=generator) + FIRST_ACTION_TOKEN
    with torch.no_grad():
        loss = TokenLoss(model)(pixels, prompts, tokens, width)
        found = evaluate(model, pixels, prompts, tokens)
    log_probs = found.distribution.double().numpy()
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, atol=1e-6)
    bins = (tokens - FIRST_ACTION_TOKEN).numpy()
    wanted = []
    for row, one in zip(log_probs.reshape(-1, 256), bins.reshape(-1), strict=True):
        weight = (np.arange(256) == one).astype(float)
        if width:
            weight = np.exp(-0.5 * ((np.arange(256) - one) / width) ** 2)
        wanted.append(-np.sum(weight / weight.sum() * row))
    assert float(loss) == pytest.approx(np.mean(wanted), rel=1e-5)


def test_a_run_aims_at_the_bell_in_its_first_half(tmp_path: Path) -> None:
    still = ("--max-steps", "4", "--learning-rate", "0")
    rig.train(tmp_path / "plain", *still)
    rig.train(tmp_path / "smooth", *still, "--bin-smoothing", "20")
    plain, smooth = rig.losses(tmp_path / "plain"), rig.losses(tmp_path / "smooth")
    assert smooth[:2] != plain[:2]
    assert smooth[2:] == plain[2:]


def test_a_run_learns_from_the_base_models_view(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(rig.base(), base)
    inputs = PolicySpec.from_dict(json.loads((base / POLICY).read_text()))
    replace(inputs, view=(0.25, 0.5, 0.75, 1.0)).write(base)
    data = tmp_path / "data"
    with LeRobotWriter(data, rig.FPS, (rig.SIDE, rig.SIDE)) as writer:
        for number in range(2):
            episode = rig.episode(number)
            images = np.stack([episode.image(t) for t in range(len(episode))])
            images[:, : rig.SIDE // 2] //= 4  # what the view leaves out
            writer.add(replace(episode, images=images))
    still = ("--max-steps", "2", "--learning-rate", "0", "--data-root", str(data))
    rig.train(tmp_path / "whole", *still)
    rig.train(tmp_path / "part", *still, "--model", str(base))
    assert rig.losses(tmp_path / "part") != rig.losses(tmp_path / "whole")
    kept = json.loads((tmp_path / "part" / "last" / POLICY).read_text())
    assert kept["view"] == [0.25, 0.5, 0.75, 1.0]
