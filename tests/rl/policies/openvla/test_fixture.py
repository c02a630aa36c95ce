"""The modules against what the original computes: pixels, vision, projection, logits."""

from __future__ import annotations

import copy
import json

import openvla_rig as rig
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from crane_x7_vla_rl.policies.openvla import OpenVLA, OpenVLAConfig
from crane_x7_vla_rl.policies.openvla.errors import ModelConfigError
from crane_x7_vla_rl.policies.openvla.model.language import rotary_table
from crane_x7_vla_rl.policies.openvla.run.runner import Runner

ROUNDING = 1e-6
"""Of the largest value: the original ran on another processor, whose products round otherwise."""


@pytest.fixture(scope="module")
def model() -> OpenVLA:
    return rig.load()


@pytest.fixture
def runner(model: OpenVLA) -> Runner:
    return Runner(model)


def gap(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def raw_config() -> dict[str, object]:
    raw: dict[str, object] = json.loads((rig.CHECKPOINT / "config.json").read_text())
    return raw


def test_names_and_shapes_of_parameters_are_the_checkpoints() -> None:
    stored: dict[str, Tensor] = {}
    for part in rig.CHECKPOINT.glob("*.safetensors"):
        stored |= load_file(part)
    ours = OpenVLA(OpenVLAConfig.from_dict(raw_config())).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in stored.items()
    }


def test_pixel_values_equal_the_originals(model: OpenVLA) -> None:
    assert torch.equal(model.preprocess(rig.images()), rig.expected()["pixel_values"])


def test_vision_and_projection_equal_the_originals_but_for_rounding(model: OpenVLA) -> None:
    expected = rig.expected()
    with torch.no_grad():
        vision = model.vision_backbone(expected["pixel_values"])
        projected = model.projector(expected["vision"])
        both = model.encode(expected["pixel_values"])
        exact = rig.load().double().encode(expected["pixel_values"].double())
    assert gap(vision, expected["vision"]) <= ROUNDING
    assert gap(projected, expected["projected"]) <= ROUNDING
    # One after the other, both sides round: each is compared with float64.
    assert gap(exact, expected["projected"]) <= ROUNDING
    assert gap(both, exact) <= ROUNDING


def test_rounding_is_no_larger_than_the_originals_own(model: OpenVLA) -> None:
    """Against the same modules in float64, which hardly round at all."""
    expected = rig.expected()
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        ours = model.vision_backbone(expected["pixel_values"])
        truth = exact.vision_backbone(expected["pixel_values"].double())
    their_error = float((expected["vision"] - truth).abs().max())
    assert float((ours - truth).abs().max()) <= 1.5 * their_error
    assert float((ours - expected["vision"]).abs().max()) <= their_error


@pytest.mark.parametrize("tower", ["featurizer", "fused_featurizer"])
def test_the_last_block_and_what_follows_never_affect_the_patches(tower: str) -> None:
    model = rig.load()
    pixels = rig.expected()["pixel_values"][:1]
    with torch.no_grad():
        before = model.encode(pixels)
        part = model.vision_backbone.get_submodule(tower)
        for name, parameter in part.named_parameters():
            last = f"blocks.{len(part.get_submodule('blocks')._modules) - 1}."
            if name.startswith((last, "norm.", "attn_pool.")):
                parameter.fill_(float("nan"))
        assert torch.equal(model.encode(pixels), before)


def test_first_logits_match_over_the_whole_vocabulary(model: OpenVLA, runner: Runner) -> None:
    for index, ids in enumerate(rig.prompts()):
        rollout = runner.roll_out(rig.expected()["pixel_values"][index : index + 1], [ids], 1)
        with torch.no_grad():
            logits = model.language_model.lm_head(rollout.hidden)[0]
        assert float((logits - rig.expected()[f"logits_last.{index}"]).abs().max()) <= 2e-4


def test_rotary_frequencies_stay_float32_in_a_bfloat16_model() -> None:
    """At position 2000 a frequency rounded to bfloat16 turns by radians too much."""
    text = OpenVLAConfig.from_dict(raw_config()).text
    coarse = rotary_table(text, 2048, torch.zeros((), dtype=torch.bfloat16))
    for ours, exact in zip(coarse, rotary_table(text, 2048, torch.zeros(())), strict=True):
        assert ours.dtype == torch.bfloat16
        assert float((ours.float() - exact).abs().max()) <= 2**-8


def test_a_bfloat16_model_stays_near_the_originals_logits() -> None:
    model = rig.load(torch.bfloat16)
    pixels = rig.expected()["pixel_values"]
    first = Runner(model).roll_out(pixels, rig.prompts(), 1).logits[:, 0]
    assert gap(first, rig.action_logits()[:, 0]) <= 0.06


def test_sizes_left_out_are_the_released_models() -> None:
    config = OpenVLAConfig.from_dict({"model_type": "openvla", "text_config": {}})
    assert config.vision_dim == 2176
    assert (config.siglip.depth, config.siglip.mlp_dim) == (27, 4304)
    assert (config.dinov2.depth, config.dinov2.registers) == (24, 4)
    assert (config.text.hidden_size, config.text.num_hidden_layers) == (4096, 32)
    assert config.text.rms_norm_eps == 1e-6
    assert config.context == 2048


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "llava"}, "model_type is 'llava', expected 'openvla'"),
        ({"image_sizes": [384, 384]}, r"image_sizes is \[384, 384\]"),
        ({"n_action_bins": 512}, "n_action_bins is 512"),
        ({"use_fused_vision_backbone": False}, "use_fused_vision_backbone is false"),
        ({"llm_max_length": 0}, "llm_max_length is 0, expected a whole number"),
        ({"text_config": []}, "text_config is a list, expected an object"),
        ({"text_config": {"vocab_size": 1000}}, "vocab_size is 1000, expected 32000 or more"),
        ({"text_config": {"num_attention_heads": 3}}, "4096 channels, 3 heads"),
        ({"vision_towers": {"siglip": {"embed_dim": 41}}}, "41 channels cannot have 16 heads"),
    ],
)
def test_a_config_of_another_model_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ModelConfigError, match=said):
        OpenVLAConfig.from_dict({"model_type": "openvla", **change})
