"""Small models that read joints and answer in chunks: what they are told and what they mean."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for package in ("safetensors", "tokenizers"):
    pytest.importorskip(package, reason="needs the train extra")

from crane_x7_vla_rl.actions import FIRST_ACTION_TOKEN, VOCABULARY
from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.policies.load import load_policy
from crane_x7_vla_rl.policies.openvla import builder
from crane_x7_vla_rl.policies.openvla.codec import Codec, PolicySpec
from crane_x7_vla_rl.policies.openvla.errors import CheckpointError, ModelConfigError
from crane_x7_vla_rl.policies.openvla.model.config import OpenVLAConfig
from crane_x7_vla_rl.policies.openvla.run.evaluate import evaluate
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
from crane_x7_vla_rl.policies.openvla.weights import loading
from crane_x7_vla_rl.robot import HOME_RAD
from crane_x7_vla_rl.types import JointState, Observation

INPUTS = PolicySpec(state_tokens=True, chunk_steps=3, period_s=0.2)
SMALL = builder.Sizes(image=64, patch=8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builder.build(tmp_path_factory.mktemp("models") / "tiny", SMALL, inputs=INPUTS)


@pytest.fixture(scope="module")
def loaded(tiny: Path) -> loading.Loaded:
    return loading.load(tiny)


@pytest.fixture(scope="module")
def codec(loaded: loading.Loaded) -> Codec:
    return Codec.of(loaded.layout, loaded.model.norm_stats, "crane_x7")


def _observe(joints: np.ndarray = HOME_RAD, seed: int = 0) -> Observation:
    image = np.random.default_rng(seed).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    return Observation(image, JointState(joints, np.zeros(8)), "pick up the red cube", 0.0)


def test_an_image_of_64_pixels_makes_64_patches(loaded: loading.Loaded) -> None:
    pixels = loaded.model.preprocess([_observe().image])
    assert pixels.shape == (1, 6, 64, 64)
    assert loaded.model.encode(pixels).shape == (1, 64, loaded.model.config.text.hidden_size)
    with pytest.raises(ValueError, match=r"\(1, 6·I, 64, 64\) or patches \(1, I·64, 96\)"):
        Runner(loaded.model).roll_out(torch.zeros(1, 6, 224, 224), [torch.tensor([1])], 8)


def test_the_policy_answers_in_chunks_of_its_period(tiny: Path) -> None:
    policy = load_policy("openvla", ModelOptions(str(tiny)))
    chunks = policy.predict([_observe(seed=1), _observe(seed=2)])
    assert [chunk.position_rad.shape for chunk in chunks] == [(3, 8), (3, 8)]
    assert {chunk.period_s for chunk in chunks} == {0.2}


def test_measured_joints_follow_the_prompt_as_action_ids(codec: Codec) -> None:
    bent = HOME_RAD + 0.1
    plain, moved = codec.prompts(["wait", "wait"], np.stack([HOME_RAD, bent]))
    assert torch.equal(plain[:-8], moved[:-8])
    assert bool((plain[-8:] >= FIRST_ACTION_TOKEN).all())
    assert bool((plain[-8:] < VOCABULARY).all())
    assert bool((moved[-8:-1] < plain[-8:-1]).all()), "a higher value is a lower id"


def test_the_answer_depends_on_the_measured_joints(loaded: loading.Loaded, codec: Codec) -> None:
    pixels = loaded.model.preprocess([_observe().image] * 2)
    ids = codec.prompts(["wait", "wait"], np.stack([HOME_RAD, HOME_RAD + 0.2]))
    logits = Runner(loaded.model).roll_out(pixels, ids, codec.answer_length).logits
    assert float((logits[0, 0] - logits[1, 0]).abs().max()) > 1e-3


def test_recorded_actions_come_back_from_their_tokens_within_half_a_bin(codec: Codec) -> None:
    rng = np.random.default_rng(0)
    span = codec.action.high - codec.action.low
    actions = codec.action.low + rng.uniform(0, 1, (5, 3, 8)) * span
    tokens = codec.tokens(actions)
    assert tokens.shape == (5, codec.answer_length)
    assert (np.abs(codec.actions(tokens) - actions) <= span / 255 / 2 + 1e-9).all()
    first = codec.tokens(np.repeat(actions[:, :1], 3, axis=1))
    assert np.array_equal(first[:, :8], tokens[:, :8]), "step after step"


def test_chunks_of_another_length_are_refused(codec: Codec) -> None:
    with pytest.raises(ValueError, match=r"\(2, 4, 8\), expected \(B, 3, D\)"):
        codec.tokens(np.zeros((2, 4, 8)))


def test_a_chunks_log_probabilities_are_those_of_its_rollout(
    loaded: loading.Loaded, codec: Codec
) -> None:
    pixels = loaded.model.preprocess([_observe(seed=seed).image for seed in range(2)])
    ids = codec.prompts(["wait", "pick up the red cube"], np.stack([HOME_RAD, HOME_RAD + 0.1]))
    rollout = Runner(loaded.model).roll_out(pixels, ids, codec.answer_length)
    judged = evaluate(loaded.model, pixels, ids, rollout.tokens)
    assert float((judged.log_probs.detach() - rollout.log_probs).abs().max()) <= 1e-4


def test_the_policy_sees_its_view_alone(tiny: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    shutil.copytree(tiny, part)
    replace(INPUTS, view=(0.25, 0.5, 0.75, 1.0)).write(part)

    def answers(folder: Path, images: list[np.ndarray]) -> np.ndarray:
        options = ModelOptions(str(folder), temperature=1.0, seed=0)
        seen = [replace(_observe(), image=image) for image in images]
        chunks = load_policy("openvla", options).predict(seen)
        return np.array([chunk.position_rad for chunk in chunks])

    whole = [_observe(seed=seed).image for seed in range(8)]
    found = answers(part, whole)
    assert np.array_equal(found, answers(tiny, [image[24:48, 16:48] for image in whole]))
    assert not np.array_equal(found, answers(tiny, whole)), "the rest of the image matters, too"


def test_sampled_answers_repeat_with_their_seed(tiny: Path) -> None:
    def answer(seed: int) -> np.ndarray:
        options = ModelOptions(str(tiny), temperature=1.0, seed=seed)
        return load_policy("openvla", options).predict([_observe()])[0].position_rad

    assert np.array_equal(answer(1), answer(1))
    assert not np.array_equal(answer(1), answer(2))


def test_a_checkpoint_that_says_nothing_is_asked_as_the_released_ones() -> None:
    assert PolicySpec.from_dict({}) == PolicySpec()
    assert PolicySpec() == PolicySpec(state_tokens=False, chunk_steps=1, period_s=0.1)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"chunk_step": 2}, "chunk_step is unknown; known: state_tokens, chunk_steps, period_s"),
        ({"chunk_steps": 0}, "chunk_steps is 0"),
        ({"chunk_steps": True}, "chunk_steps is true"),
        ({"period_s": -1}, "period_s is -1"),
        ({"state_tokens": "yes"}, "state_tokens is 'yes'"),
        ({"view": [0.5, 0, 0.5, 1]}, r"view is \[0.5, 0, 0.5, 1\], expected left, top"),
        ({"view": "all"}, "view is 'all'"),
    ],
)
def test_a_wrong_policy_json_is_named(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        PolicySpec.from_dict(raw)


def test_policy_json_holds_what_was_written(tmp_path: Path) -> None:
    inputs = PolicySpec(True, 2, 0.2, (0.25, 0.5, 0.75, 1.0))
    raw = json.loads(inputs.write(tmp_path).read_text())
    assert PolicySpec.from_dict(raw) == inputs


def test_state_tokens_without_statistics_of_the_state_are_refused(loaded: loading.Loaded) -> None:
    stats = {"crane_x7": {"action": loaded.model.norm_stats["crane_x7"]["action"]}}
    with pytest.raises(CheckpointError, match="no proprio statistics"):
        Codec.of(loaded.layout, stats, "crane_x7")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_sizes": [60, 60]}, "patches of 8 pixels do not fill images of 60"),
        ({"image_sizes": [64, 72]}, "expected two equal numbers"),
        ({"vision_towers": {}}, "only the 224-pixel"),
    ],
)
def test_odd_resolutions_are_named(tiny: Path, change: dict[str, Any], message: str) -> None:
    raw = json.loads((tiny / "config.json").read_text()) | change
    with pytest.raises(ModelConfigError, match=message):
        OpenVLAConfig.from_dict(raw)


def test_neighbouring_bins_begin_alike(loaded: loading.Loaded) -> None:
    rows = loaded.model.language_model.model.embed_tokens.weight[FIRST_ACTION_TOKEN:VOCABULARY]
    unit = torch.nn.functional.normalize(rows.detach(), dim=1)
    assert float((unit[:-2] * unit[2:]).sum(1).min()) > 0.9
    assert float((unit[:128] * unit[128:]).sum(1).abs().mean()) < 0.3


def test_the_builders_flags_reach_policy_json(tmp_path: Path) -> None:
    flags = ["--image", "96", "--patch", "12", "--state-tokens", "--chunk-steps", "4"]
    view = ["--view", "0.25", "0.5", "0.75", "1"]
    assert builder.main([str(tmp_path), *flags, "--period-s", "0.2", *view]) == 0
    assert json.loads((tmp_path / "policy.json").read_text()) == {
        "state_tokens": True,
        "chunk_steps": 4,
        "period_s": 0.2,
        "view": [0.25, 0.5, 0.75, 1.0],
    }
    assert loading.load(tmp_path).model.config.patches == 64
    assert builder.main([str(tmp_path), "--chunk-steps", "0"]) == 1
    assert builder.main([str(tmp_path), "--image", "100"]) == 1
