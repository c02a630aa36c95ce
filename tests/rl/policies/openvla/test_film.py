"""FiLM of OpenVLA-OFT+: released files of towers, whole with LoRA's matrices, or FiLM alone."""

from __future__ import annotations

from pathlib import Path

import openvla_rig as rig
import pytest
import torch
from oft_rig import HIDDEN, STATE_DIM, STEPS, write
from torch import Tensor
from torch.nn import functional

from crane_x7_vla_rl.policies.openvla.errors import CheckpointError
from crane_x7_vla_rl.policies.openvla.model.vision import Block, VisionBackbone, add_norm
from crane_x7_vla_rl.policies.openvla.run.oft import (
    ChunkSettings,
    OpenVLAOft,
    instruction,
    load_oft,
)
from crane_x7_vla_rl.policies.openvla.run.oft_evaluate import evaluate_chunk
from crane_x7_vla_rl.policies.openvla.run.sequence import pack
from crane_x7_vla_rl.policies.openvla.weights import oft_loading
from crane_x7_vla_rl.policies.openvla.weights.loading import load

FILE = "vision_backbone--150000_checkpoint.pt"
SETTINGS = ChunkSettings(STEPS)
RANK = 32
STATE = torch.linspace(-1, 1, 2 * STATE_DIM).reshape(2, -1)
TOWERS = ("featurizer", "fused_featurizer")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "oft")


def backbone_of(folder: Path) -> VisionBackbone:
    return load(folder).model.vision_backbone


def film_of(backbone: VisionBackbone, seed: int = 0) -> dict[str, Tensor]:
    """Return FiLM for all blocks, as released: `….blocks.0.scale.weight`."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name in TOWERS:
        for number, block in enumerate(backbone.get_submodule(name).blocks):
            dim = len(block.norm1.weight)
            for part in ("scale", "shift"):
                where = f"vision_backbone.{name}.blocks.{number}.{part}"
                weight = torch.randn(dim, HIDDEN, generator=generator)
                found[f"{where}.weight"] = 4 * weight
                found[f"{where}.bias"] = 0.1 * torch.randn(dim, generator=generator)
    return found


def released(backbone: VisionBackbone) -> dict[str, Tensor]:
    """Return towers and FiLM as `finetune.py` saves them: blocks wrapped, LoRA not merged."""
    generator = torch.Generator().manual_seed(1)
    tensors = film_of(backbone)
    linear = {n for n, m in backbone.named_modules() if isinstance(m, torch.nn.Linear)}
    for name, value in backbone.state_dict().items():
        module, _, leaf = name.rpartition(".")
        wrapped = f"vision_backbone.{module}"
        if ".blocks." in module:
            tower, _, rest = module.partition(".blocks.")
            number, _, inner = rest.partition(".")
            wrapped = f"vision_backbone.{tower}.blocks.{number}.block.{inner}"
        if module not in linear:
            tensors[f"{wrapped}.{leaf}"] = value
            continue
        tensors[f"{wrapped}.base_layer.{leaf}"] = value
        if leaf == "weight":
            rows, columns = value.shape
            a = torch.randn(RANK, columns, generator=generator) * 0.05
            b = torch.randn(rows, RANK, generator=generator) * 0.05
            tensors[f"{wrapped}.lora_A.default.weight"] = a
            tensors[f"{wrapped}.lora_B.default.weight"] = b
    return tensors


def told(policy: OpenVLAOft, prompt: Tensor) -> Tensor:
    """Return the mean embedding of BOS, the text, 29871 and the end."""
    whole = torch.cat([prompt, torch.tensor([29871, 2])])
    found: Tensor = policy.base.language_model.model.embed_tokens(whole).mean(0)
    return found


def seen(policy: OpenVLAOft, pixels: Tensor, word: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """Return the features (N, both towers' channels) of one image, by plain arithmetic."""

    def layer(where: str, x: Tensor) -> Tensor:
        weight = tensors.get(f"{where}.base_layer.weight")
        if weight is None:
            return x @ tensors[f"{where}.weight"].T + tensors[f"{where}.bias"]
        a, b = (tensors[f"{where}.lora_{half}.default.weight"] for half in "AB")
        return x @ (weight + 16 / RANK * b @ a).T + tensors[f"{where}.base_layer.bias"]

    features = []
    for tower, channels in zip(TOWERS, pixels.split(3), strict=True):
        module = policy.base.vision_backbone.get_submodule(tower)
        x = module._embed(channels[None])[0]
        for number, block in enumerate(module.blocks[:-1]):
            assert isinstance(block, Block)
            where = f"vision_backbone.{tower}.blocks.{number}"
            inner = f"{where}.block"

            def norm(name: str, x: Tensor, inner: str = inner) -> Tensor:
                weight, bias = (tensors[f"{inner}.{name}.{p}"] for p in ("weight", "bias"))
                return functional.layer_norm(x, weight.shape, weight, bias, 1e-6)

            def scaled(name: str, x: Tensor, inner: str = inner) -> Tensor:
                return x * tensors.get(f"{inner}.{name}.scale_factor", torch.ones(()))

            tokens, dim = x.shape
            qkv = layer(f"{inner}.attn.qkv", norm("norm1", x))
            parts = qkv.view(tokens, 3, block.attn.heads, -1).permute(1, 2, 0, 3)
            mixed = functional.scaled_dot_product_attention(*parts)
            mixed = mixed.transpose(0, 1).reshape(tokens, dim)
            x = x + scaled("ls1", layer(f"{inner}.attn.proj", mixed))
            x = x * (1 + layer(f"{where}.scale", word)) + layer(f"{where}.shift", word)
            hidden = functional.gelu(layer(f"{inner}.mlp.fc1", norm("norm2", x)))
            x = x + scaled("ls2", layer(f"{inner}.mlp.fc2", hidden))
        features.append(x[module.prefix :])
    return torch.cat(features, dim=1)


def test_released_towers_equal_plain_arithmetic(folder: Path) -> None:
    tensors = released(backbone_of(folder))
    torch.save(tensors, folder / FILE)
    policy = load_oft(folder, settings=SETTINGS)
    pixels = rig.expected()["pixel_values"][:2]
    with torch.no_grad():
        words = torch.stack([told(policy, prompt) for prompt in rig.prompts()[:2]])
        for how in (None, add_norm):
            found = policy.base.vision_backbone(pixels, how, words)
            for row in range(2):
                expected = seen(policy, pixels[row], words[row], tensors)
                torch.testing.assert_close(found[row], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("padded", [False, True])
def test_the_same_embedding_drives_and_trains(folder: Path, padded: bool) -> None:
    torch.save(film_of(backbone_of(folder)), folder / FILE)
    policy = load_oft(folder, settings=SETTINGS)
    pixels = rig.expected()["pixel_values"][:2]
    prompts = [rig.prompts()[0], rig.prompts()[1 if padded else 0]]
    drives = policy.predict_normalised(pixels, prompts, STATE)
    for row in range(2):
        alone = policy.predict_normalised(pixels[row : row + 1], [prompts[row]], STATE[row][None])
        torch.testing.assert_close(drives[row : row + 1], alone, rtol=1e-4, atol=1e-4)
    heads = policy.head, policy.proprio
    learned = evaluate_chunk(policy.base, heads, pixels, prompts, STATE, STEPS)
    torch.testing.assert_close(learned.detach(), drives, rtol=1e-4, atol=1e-4)
    policy.base.checkpoint_gradients()
    again = evaluate_chunk(policy.base, heads, pixels, prompts, STATE, STEPS)
    torch.testing.assert_close(again, learned)


@pytest.mark.parametrize("padded", [False, True])
def test_film_reads_the_mean_of_all_tokens_that_are_no_actions(folder: Path, padded: bool) -> None:
    torch.save(film_of(backbone_of(folder)), folder / FILE)
    policy = load_oft(folder, settings=SETTINGS)
    prompts = [rig.prompts()[0], rig.prompts()[0]]
    if padded:
        prompts[1] = prompts[1][:-3]
    packed = pack(prompts, policy.base.config, 1, 1)
    assert packed.padded is padded
    found = instruction(policy.base, packed.ids, packed.pads if padded else None)
    expected = torch.stack([told(policy, prompt) for prompt in prompts])
    torch.testing.assert_close(found, expected)


def test_the_image_is_seen_by_the_instruction(folder: Path) -> None:
    torch.save(film_of(backbone_of(folder)), folder / FILE)
    policy = load_oft(folder, settings=SETTINGS)
    first, second = (told(policy, prompt)[None] for prompt in rig.prompts()[:2])
    pixels = rig.expected()["pixel_values"][:1]
    with torch.no_grad():
        one, other = (policy.base.encode(pixels, told=word) for word in (first, second))
    assert (one - other).abs().max() > 1e-3
    with pytest.raises(ValueError, match="need the instruction's embedding"):
        policy.base.encode(pixels)


def test_new_film_changes_nothing(folder: Path) -> None:
    usual = load_oft(folder, settings=SETTINGS)
    other = load_oft(folder, settings=SETTINGS)
    other.base.vision_backbone.add_film(HIDDEN)
    pixels, prompts = rig.expected()["pixel_values"][:2], rig.prompts()[:2]
    expected = usual.predict_normalised(pixels, prompts, STATE)
    torch.testing.assert_close(other.predict_normalised(pixels, prompts, STATE), expected)


def test_two_images_are_modulated_alike(folder: Path) -> None:
    torch.save(film_of(backbone_of(folder)), folder / FILE)
    policy = load_oft(folder, settings=SETTINGS)
    pixels = rig.expected()["pixel_values"][:1]
    word = told(policy, rig.prompts()[0])[None]
    with torch.no_grad():
        one = policy.base.encode(pixels, told=word)
        two = policy.base.encode(torch.cat([pixels, pixels], dim=1), told=word)
    # Two orders of the same float32 sums.
    torch.testing.assert_close(two, torch.cat([one, one], dim=1), rtol=1e-3, atol=1e-4)


def missing(tensors: dict[str, Tensor]) -> None:
    del tensors["vision_backbone.featurizer.blocks.0.scale.weight"]


def half(tensors: dict[str, Tensor]) -> None:
    del tensors["vision_backbone.featurizer.blocks.0.block.attn.qkv.lora_B.default.weight"]


def nan(tensors: dict[str, Tensor]) -> None:
    tensors["vision_backbone.featurizer.blocks.0.scale.weight"][0, 0] = torch.nan


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (missing, r"featurizer.blocks.0.film.scale.weight is missing"),
        (half, r"qkv.lora_B.default.weight is missing"),
        (nan, r"hold NaN: featurizer.blocks.0.film.scale.weight"),
    ],
)
def test_damaged_film_is_refused(folder: Path, damage: object, said: str) -> None:
    tensors = released(backbone_of(folder))
    assert callable(damage)
    damage(tensors)
    torch.save(tensors, folder / FILE)
    with pytest.raises((CheckpointError, ValueError), match=said):
        load_oft(folder, settings=SETTINGS)


def test_an_adapter_cannot_be_added_to_stored_towers(folder: Path) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    torch.save(released(backbone_of(folder)), folder / FILE)
    model = load(folder).model
    inject_adapter_in_model(LoraConfig(r=2, target_modules="all-linear"), model.vision_backbone)
    with pytest.raises(CheckpointError, match="make one model with `merge` first"):
        oft_loading.read_film(folder, model)
