"""Decode with 8-bit weights: close to the model's own, measured, and never stale."""

from __future__ import annotations

import openvla_rig as rig
import pytest
import torch
from torch import Tensor

from crane_x7_vla_rl.policies.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.model.matrices import Dense
from crane_x7_vla_rl.policies.openvla.run.low_bit import Kind, LowBit
from crane_x7_vla_rl.policies.openvla.run.low_bit_error import compare, logits_apart
from crane_x7_vla_rl.policies.openvla.run.runner import Runner

KINDS: tuple[tuple[Kind, float], ...] = (("int8", 0.01), ("fp8", 0.04))
"""Relative error of a product: half a step of 1/127 or 1/16, averaged over the inputs."""


@pytest.fixture
def model() -> OpenVLA:
    return rig.load()


@pytest.fixture
def runner(model: OpenVLA) -> Runner:
    return Runner(model)


def pixels() -> Tensor:
    return rig.expected()["pixel_values"]


@pytest.mark.parametrize(("kind", "error"), KINDS)
def test_products_are_close_to_the_dense_ones(kind: Kind, error: float) -> None:
    generator = torch.Generator().manual_seed(0)
    dense = Dense(torch.randn(96, 300, generator=generator))
    x = torch.randn(3, 1, 300, generator=generator)
    coarse = LowBit(dense, kind)
    assert float((coarse(x) - dense(x)).norm() / dense(x).norm()) < error
    assert coarse.weight.element_size() == 1
    assert torch.allclose(coarse.onto(dense(x), x), dense(x) + coarse(x))


def test_large_batches_keep_the_dense_weights() -> None:
    dense = Dense(torch.randn(8, 8))
    x = torch.randn(17, 1, 8)
    assert torch.equal(LowBit(dense, "int8")(x), dense(x))


@pytest.mark.parametrize("group", [16, 128, None])
@pytest.mark.parametrize("inputs", [5, 100, 300])
def test_a_group_shares_a_scale_whatever_the_width(group: int | None, inputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, inputs, generator=generator)
    weight[:, 0] = 40  # an outlier costs accuracy in its own group alone
    coarse = LowBit(Dense(weight), "int8", group)
    assert coarse.scale.shape == (-(-inputs // coarse.group), 12)
    assert coarse.group <= (group or 512)
    x = torch.randn(2, 3, inputs, generator=generator)
    x[..., 0] = 0
    error = float((coarse(x) - x @ weight.t()).norm() / (x @ weight.t()).norm())
    steps = (40 / 127) ** 2 / 12 * min(coarse.group, inputs) / inputs + 0.012**2
    assert error < 1.3 * steps**0.5


def test_int8_moves_logits_about_as_far_as_bfloat16_does(model: OpenVLA) -> None:
    """Against float64, after equal tokens: 0.12 and 0.11 where logits spread by 7.2."""
    exact = Runner(rig.load().double()).roll_out(pixels().double(), rig.prompts(), 8)
    coarse = Runner(model, "int8").roll_out(pixels(), rig.prompts(), 8)
    half = Runner(rig.load(torch.bfloat16)).roll_out(pixels().bfloat16(), rig.prompts(), 8)
    assert 0 < logits_apart(coarse, exact) < 1.5 * logits_apart(half, exact)
    assert torch.equal(coarse.tokens, exact.tokens)


def test_a_row_of_zeros_stays_zero() -> None:
    assert not LowBit(Dense(torch.zeros(2, 4)), "fp8")(torch.ones(1, 1, 4)).any()


@pytest.mark.parametrize(("kind", "error"), KINDS)
def test_the_error_in_actions_is_reported(
    model: OpenVLA, runner: Runner, kind: Kind, error: float
) -> None:
    found = compare(model, kind, pixels(), rig.prompts(), 8)
    assert 0.25 <= found.same_tokens <= 1  # random weights: a differing token upsets all after it
    assert 0 <= found.mean <= found.largest <= 2
    assert 0 < found.log_prob < 40 * error
    assert 0 < found.logits < 25 * error
    assert torch.equal(runner.roll_out(pixels(), rig.prompts(), 8).tokens, rig.tokens("crane_x7"))


def test_weights_changed_in_place_reach_the_8_bit_copies(model: OpenVLA) -> None:
    runner = Runner(model, "int8")
    runner.roll_out(pixels(), rig.prompts(), 8)
    with torch.no_grad():
        for parameter in model.language_model.model.layers.parameters():
            parameter.mul_(1.3)
    changed = runner.roll_out(pixels(), rig.prompts(), 8)
    fresh = rig.load()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(
        changed.logits, Runner(fresh, "int8").roll_out(pixels(), rig.prompts(), 8).logits
    )
