"""OpenVLA-OFT: chunks in one pass, against transformers' Llama; its released layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import openvla_rig as rig
import pytest
import torch
from oft_rig import (
    ACTION_DIM,
    HIDDEN,
    KEY,
    STATE_DIM,
    STATISTICS,
    STEPS,
    head_weights,
    proprio_weights,
    write,
)
from torch import Tensor
from torch.nn import functional

from crane_x7_vla_rl.policies.openvla.errors import CheckpointError
from crane_x7_vla_rl.policies.openvla.run.oft import ChunkSettings, OpenVLAOft, load_oft

SETTINGS = ChunkSettings(STEPS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "oft")


def pairs() -> Tensor:
    """Return (2, 12, 224, 224): two samples of two images."""
    pixels = rig.expected()["pixel_values"]
    return torch.cat([pixels[:2], pixels[2:]], dim=1)


def states() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1.5, 3.5, (2, STATE_DIM))


def oracle(policy: OpenVLAOft, row: int) -> np.ndarray:
    """Return (T, 7) for one sample, by transformers' Llama and plain arithmetic."""
    llama = rig.transformers_llama(policy.base).model
    state = np.clip(2 * (states()[row] + 1) / 4 - 1, -1, 1)
    state[7] = 0.0
    own = {key.removeprefix("module."): value for key, value in proprio_weights().items()}
    token = torch.from_numpy(state).float() @ own["fc1.weight"].T + own["fc1.bias"]
    token = functional.gelu(token) @ own["fc2.weight"].T + own["fc2.bias"]
    ids = torch.cat([rig.prompts()[row], torch.tensor([29871])])
    placeholders = STEPS * ACTION_DIM
    with torch.no_grad():
        patches = policy.base.encode(pairs()[row : row + 1])[0]
        embedded = llama.embed_tokens(ids)
        stop = llama.embed_tokens(torch.tensor([2]))
        blank = torch.zeros(placeholders, HIDDEN)
        x = torch.cat([embedded[:1], patches, token[None], embedded[1:], blank, stop])
        seen = torch.zeros(1, 1, len(x), len(x))
        hidden = llama(inputs_embeds=x[None], attention_mask=seen).last_hidden_state[0]
        first = len(patches) + 1 + len(ids) - 1
        read = hidden[first : first + placeholders].reshape(STEPS, -1)
        weights = {k.removeprefix("module.model."): v for k, v in head_weights().items()}
        for name in ("layer_norm1", "fc1"):
            read = _apply(weights, name, read)
        read = read.relu()
        for block in (0, 1):
            inner = _apply(weights, f"mlp_resnet_blocks.{block}.ffn.0", read)
            read = read + _apply(weights, f"mlp_resnet_blocks.{block}.ffn.1", inner).relu()
        for name in ("layer_norm2", "fc2"):
            read = _apply(weights, name, read)
    actions = read.double().numpy()
    scaled = 0.5 * (actions + 1) * 1.5 - 0.5
    return np.where([True] * 6 + [False], scaled, actions)


def _apply(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    if weight.ndim == 1:
        return functional.layer_norm(x, weight.shape, weight, bias)
    return x @ weight.T + bias


@pytest.mark.parametrize("bucket", [1, 16])
def test_a_batch_of_chunks_equals_the_oracle(folder: Path, bucket: int) -> None:
    policy = load_oft(folder, settings=SETTINGS)
    policy.runner.bucket = bucket
    actions = policy.predict(pairs(), rig.prompts()[:2], KEY, states())
    assert actions.shape == (2, STEPS, ACTION_DIM)
    for row in range(2):
        assert np.abs(actions[row] - oracle(policy, row)).max() <= 1e-4


def test_one_sample_equals_the_oracle_and_itself_again(folder: Path) -> None:
    policy = load_oft(folder, settings=SETTINGS)
    first = policy.predict(pairs()[:1], rig.prompts()[:1], KEY, states()[:1])
    other = policy.predict(pairs()[1:], rig.prompts()[:1], KEY, states()[1:])
    again = policy.predict(pairs()[:1], rig.prompts()[:1], KEY, states()[:1])
    assert np.abs(first[0] - oracle(policy, 0)).max() <= 1e-4
    assert np.array_equal(first, again)
    assert np.abs(first - other).max() > 1e-2


def test_the_state_and_the_second_image_are_read(folder: Path) -> None:
    policy = load_oft(folder, settings=SETTINGS)
    ids = rig.prompts()[:1]
    usual = policy.predict(pairs()[:1], ids, KEY, states()[:1])
    moved = policy.predict(pairs()[:1], ids, KEY, states()[1:])
    other = torch.cat([pairs()[:1, :6], pairs()[1:, 6:]], dim=1)
    assert np.abs(usual - moved).max() > 1e-3
    assert np.abs(usual - policy.predict(other, ids, KEY, states()[:1])).max() > 1e-3


def test_training_with_extremes_scales_by_extremes(folder: Path) -> None:
    state = STATISTICS[KEY]["proprio"]
    entry = {"min": state["q01"], "max": state["q99"]}
    raw = {KEY: {**STATISTICS[KEY], "proprio": {**state, **entry}}}
    (folder / "dataset_statistics.json").write_text(json.dumps(raw))
    ids = rig.prompts()[:1]
    wide = load_oft(folder, settings=ChunkSettings(STEPS, ("min", "max")))
    usual = load_oft(folder, settings=SETTINGS).predict(pairs()[:1], ids, KEY, states()[:1])
    actions = wide.predict(pairs()[:1], ids, KEY, states()[:1])
    assert np.allclose((actions[..., :6] + 2) / 4, (usual[..., :6] + 0.5) / 1.5, atol=1e-6)


def test_without_a_projector_no_state_is_wanted(folder: Path) -> None:
    (folder / "proprio_projector--150000_checkpoint.pt").unlink()
    policy = load_oft(folder, settings=SETTINGS)
    assert policy.predict(pairs()[:1], rig.prompts()[:1], KEY).shape == (1, STEPS, ACTION_DIM)
    with pytest.raises(ValueError, match=r"state has shape \(1, 8\), expected no state"):
        policy.predict(pairs()[:1], rig.prompts()[:1], KEY, states()[:1])


@pytest.mark.parametrize("shape", [None, (8,), (1, 7), (2, 8)])
def test_a_state_of_another_shape_is_refused(folder: Path, shape: tuple[int, ...] | None) -> None:
    policy = load_oft(folder, settings=SETTINGS)
    state = None if shape is None else np.zeros(shape)
    with pytest.raises(ValueError, match=r"expected shape \(1, 8\)"):
        policy.predict(pairs()[:1], rig.prompts()[:1], KEY, state)


def save(weights: object, folder: Path, kind: str = "action_head", step: int = 150000) -> None:
    torch.save(weights, folder / f"{kind}--{step}_checkpoint.pt")


def without_head(folder: Path) -> None:
    (folder / "action_head--150000_checkpoint.pt").unlink()


def with_two_heads(folder: Path) -> None:
    save(head_weights(), folder, step=9)


def with_diffusion(folder: Path) -> None:
    save({}, folder, "noisy_action_projector")


def truncated(folder: Path) -> None:
    path = folder / "action_head--150000_checkpoint.pt"
    path.write_bytes(path.read_bytes()[:500])


def with_text(folder: Path) -> None:
    (folder / "action_head--150000_checkpoint.pt").write_text("text")


def with_a_missing_key(folder: Path) -> None:
    weights = head_weights()
    del weights["module.model.fc1.bias"]
    save(weights, folder)


def with_an_extra_key(folder: Path) -> None:
    save({**head_weights(), "module.model.fc9.bias": torch.zeros(1)}, folder)


def with_a_wrong_shape(folder: Path) -> None:
    save({**head_weights(), "module.model.fc1.weight": torch.zeros(32, 5)}, folder)


class Bomb:
    """A pickle that would write a file where it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def with_code(folder: Path) -> None:
    save({"model": Bomb(folder / "ran")}, folder)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without_head, "holds no action_head--<step>_checkpoint.pt"),
        (with_two_heads, "expected one action_head; remove the others"),
        (with_diffusion, "the diffusion head is not implemented"),
        (truncated, "is not a readable file of tensors"),
        (with_text, "is not a readable file of tensors"),
        (with_a_missing_key, "model.fc1.bias is missing"),
        (with_an_extra_key, "model.fc9.bias are unknown"),
        (with_a_wrong_shape, r"fc1.weight has shape \(32, 5\), expected \(32, 224\)"),
        (with_code, "is not a readable file of tensors"),
    ],
)
def test_a_damaged_layout_is_refused(folder: Path, damage: object, said: str) -> None:
    assert callable(damage)
    damage(folder)
    with pytest.raises(CheckpointError, match=said):
        load_oft(folder, settings=SETTINGS)
    assert not (folder / "ran").exists()
