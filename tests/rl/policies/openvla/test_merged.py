"""The copy that acts, with adapters added to its weights, answers as the model that learns."""

from __future__ import annotations

import pytest

for package in ("torch", "transformers", "peft"):
    pytest.importorskip(package, reason="needs the train extra")

import torch
import training_rig
from accelerate import Accelerator
from torch import Tensor
from training_rig import SIDE

from crane_x7_vla_rl.policies.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.errors import AdapterError
from crane_x7_vla_rl.policies.openvla.run.rollout import Rollout, Sampling
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
from crane_x7_vla_rl.policies.openvla.weights.loading import load
from crane_x7_vla_rl.policies.openvla.weights.lora import LoraSettings, add_lora
from crane_x7_vla_rl.policies.openvla.weights.merged import Merged
from crane_x7_vla_rl.training.rl import agent as agents
from crane_x7_vla_rl.training.rl.ppo_config import PpoConfig


@pytest.fixture
def learning() -> OpenVLA:
    """Return a model with adapters everywhere that change what it does."""
    torch.set_num_threads(1)
    model = load(training_rig.base()).model
    torch.manual_seed(1)
    add_lora(model, LoraSettings(rank=4, alpha=8))
    move(model, 0.05)
    return model


@torch.no_grad()
def move(model: OpenVLA, deviation: float) -> None:
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.add_(torch.randn_like(parameter), alpha=deviation)


def answer(runner: Runner) -> Rollout:
    draw = torch.Generator().manual_seed(2)
    pixels = torch.randn(3, 6, SIDE, SIDE, generator=draw)
    prompts = [torch.tensor([1, *range(300, 304 + row)]) for row in range(3)]
    return runner.roll_out(pixels, prompts, 8, Sampling(1.0, draw))


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def test_it_answers_as_the_model_that_learns_before_and_after_an_update(learning: OpenVLA) -> None:
    merged = Merged(learning)
    as_it_learns, added = Runner(learning), Runner(merged.model)
    for _ in range(2):
        merged.refresh()
        theirs, ours = answer(as_it_learns), answer(added)
        assert torch.equal(ours.tokens, theirs.tokens)
        assert apart(ours.log_probs, theirs.log_probs) < 1e-4
        assert apart(ours.hidden, theirs.hidden) < 1e-4
        before = ours
        move(learning, 0.05)
    merged.refresh()
    assert apart(answer(added).logits, before.logits) > 0.1


def test_it_has_no_adapters_and_takes_nothing_from_the_model_that_learns(
    learning: OpenVLA,
) -> None:
    kept = {name: tensor.clone() for name, tensor in learning.state_dict().items()}
    merged = Merged(learning)
    answer(Runner(merged.model))
    assert not agents.has_adapters(merged.model)
    assert not any(parameter.requires_grad for parameter in merged.model.parameters())
    assert all(torch.equal(kept[name], x) for name, x in learning.state_dict().items())


def test_weights_in_16_bits_are_refused_and_act_with_their_adapters(learning: OpenVLA) -> None:
    halved = learning.to(torch.bfloat16)
    with pytest.raises(AdapterError, match="not float32"):
        Merged(halved)
    made = agents.build(halved, PpoConfig(), Accelerator(cpu=True))
    with made.acting() as runner:
        assert runner.model is made.policy


def test_an_agent_in_float32_acts_with_the_copy(learning: OpenVLA) -> None:
    made = agents.build(learning, PpoConfig(), Accelerator(cpu=True))
    with made.acting() as runner:
        assert not agents.has_adapters(runner.model)
        assert torch.equal(answer(runner).tokens, answer(Runner(learning)).tokens)
