"""Build small OpenVLA checkpoints with random weights, for tests and to start training from.

    python -m crane_x7_vla_rl.policies.openvla.builder outputs/tiny [--hidden 96] [--seed 0] …

Sizes and a seed → a checkpoint folder like a released one: config.json, model.safetensors,
dataset_statistics.json, policy.json (see `codec.PolicySpec`), and a new tokenizer.json, trained on
the instructions of this project. Its config.json contains `random_weights`, so that no one mistakes
it for a trained model. Its image may be smaller than the released model's: with 96
pixels in patches of 12 it learns a simulated task on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

from crane_x7_vla_rl.actions import ACTION_BINS, FIRST_ACTION_TOKEN, VOCABULARY
from crane_x7_vla_rl.fields import leaves
from crane_x7_vla_rl.policies.openvla.codec import PERIOD_S, PolicySpec
from crane_x7_vla_rl.policies.openvla.errors import CheckpointError, ModelConfigError
from crane_x7_vla_rl.policies.openvla.image import IMAGE_SIZE, WHOLE
from crane_x7_vla_rl.policies.openvla.model.config import PATCH_SIZE, OpenVLAConfig
from crane_x7_vla_rl.policies.openvla.model.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.weights.files import SINGLE, has_weights, read_json
from crane_x7_vla_rl.policies.openvla.weights.layout import CONFIG, STATISTICS, TOKENIZER
from crane_x7_vla_rl.prompt import prompt
from crane_x7_vla_rl.robot import HOME_RAD, LOWER_RAD, UPPER_RAD

COLOURS: Final = ("red", "green", "blue", "yellow")
TEMPLATES: Final = (
    "pick up the {} cube",
    "lift the {} cube",
    "grasp the {} cube and hold it",
    "place the {} cube on the plate",
    "put the {} cube on the plate",
    "move the {} cube to the plate",
)
OTHERS: Final = ("pick up the object", "pick and place the object", "wait", "stop")
TOKENS: Final = 512
"""Largest vocabulary of the tokenizer: 3 special tokens, 256 bytes, and frequent sequences."""
SPREAD_RAD: Final = 0.3
"""Largest distance of actions from the rest pose: random actions are then safe."""
GRIPPER_RAD: Final = (0.0, 0.6)
READABLE: Final = 0o644
"""safetensors writes files that other users may not read."""
EMBEDDING_STD: Final = 0.02
POSITION_STD: Final = 0.5
"""As large as a patch's content: with 0.02, as in models trained on millions of images, small
models memorised scenes before they used positions."""
SMOOTH_BINS: Final = 100
"""Tokens less than a sixth of this apart, 2π to a wave, start nearly equal."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a small model; with the defaults an action takes a few milliseconds on one core."""

    hidden: int = 96
    """Channels of the language model."""
    layers: int = 3
    """Layers of the language model."""
    heads: int = 4
    """Attention heads of the language model."""
    mlp: int = 256
    """Channels between the language model's gate and down projections."""
    dino_dim: int = 64
    """Channels of DINOv2."""
    dino_depth: int = 4
    """Blocks of DINOv2; the last is never computed."""
    siglip_dim: int = 64
    """Channels of SigLIP."""
    siglip_depth: int = 4
    """Blocks of SigLIP; the last is never computed."""
    vision_heads: int = 4
    """Attention heads of both towers."""
    image: int = IMAGE_SIZE
    """Pixels of each side of an image."""
    patch: int = PATCH_SIZE
    """Pixels of each side of a patch."""


def instructions() -> Iterator[str]:
    """Yield the instructions of this project's tasks, demo and documents."""
    for template, colour in product(TEMPLATES, COLOURS):
        yield template.format(colour)
    yield from OTHERS


def build(
    folder: Path, sizes: Sizes | None = None, seed: int = 0, inputs: PolicySpec | None = None
) -> Path:
    """Write a checkpoint into `folder` and return it; an earlier one of this program is replaced.

    Raises CheckpointError if the folder holds a checkpoint of another origin.
    """
    sizes = sizes or Sizes()
    if has_weights(folder) and not read_json(folder / CONFIG).get("random_weights"):
        raise CheckpointError(
            f"{folder} holds a model that this program did not build; choose another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    raw = _config(sizes)
    model = OpenVLA(OpenVLAConfig.from_dict(raw))
    initialise(model, seed)
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    (folder / SINGLE).chmod(READABLE)
    train_tokenizer().save(str(folder / TOKENIZER))
    _write(folder / STATISTICS, _statistics())
    (inputs or PolicySpec()).write(folder)
    _write(folder / CONFIG, raw)
    return folder


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _config(sizes: Sizes) -> dict[str, Any]:
    heads = sizes.vision_heads
    return {
        "architectures": ["OpenVLAForActionPrediction"],
        "model_type": "openvla",
        "random_weights": True,
        "arch_specifier": "no-align+fused-gelu-mlp",
        "image_resize_strategy": "resize-naive",
        "image_sizes": [sizes.image, sizes.image],
        "llm_backbone_id": "llama2-7b-pure",
        "llm_max_length": 2048,
        "n_action_bins": 256,
        "norm_stats": _statistics(),
        "pad_to_multiple_of": 64,
        "pad_token_id": 32000,
        "text_config": {
            "model_type": "llama",
            "hidden_size": sizes.hidden,
            "intermediate_size": sizes.mlp,
            "num_attention_heads": sizes.heads,
            "num_hidden_layers": sizes.layers,
            "num_key_value_heads": sizes.heads,
            "pad_token_id": 32000,
            "vocab_size": 32064,
        },
        "timm_model_ids": [
            "vit_large_patch14_reg4_dinov2.lvd142m",
            "vit_so400m_patch14_siglip_224",
        ],
        "torch_dtype": "float32",
        "use_fused_vision_backbone": True,
        "vision_backbone_id": "dinosiglip-vit-so-224px",
        "vision_towers": {
            "patch_size": sizes.patch,
            "dinov2": {"embed_dim": sizes.dino_dim, "depth": sizes.dino_depth, "num_heads": heads},
            "siglip": {
                "embed_dim": sizes.siglip_dim,
                "depth": sizes.siglip_depth,
                "num_heads": heads,
            },
        },
    }


def _statistics() -> dict[str, Any]:
    """Return statistics under `crane_x7` around the rest pose, inside all limits."""
    low = (HOME_RAD - SPREAD_RAD).clip(LOWER_RAD, UPPER_RAD)
    high = (HOME_RAD + SPREAD_RAD).clip(LOWER_RAD, UPPER_RAD)
    low[-1], high[-1] = GRIPPER_RAD
    action = {"q01": low.tolist(), "q99": high.tolist(), "mask": [True] * len(low)}
    return {"crane_x7": {"action": action, "proprio": action}}


def initialise(model: OpenVLA, seed: int) -> None:
    """Sample all weights again: linear maps preserve the scale of inputs, embeddings are small.

    The rows of the 256 action tokens, in and out, change smoothly from bin to bin, and position
    embeddings of patches smoothly over the image: a small model would not learn from a few thousand
    frames that bins are numbers on a line and patches places on a plane.
    """
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            fan_in = module.weight[0].numel()
            nn.init.trunc_normal_(module.weight, std=fan_in**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=EMBEDDING_STD)
    for name, parameter in model.named_parameters():
        if name.endswith(("cls_token", "reg_token", "latent")):
            nn.init.normal_(parameter, std=EMBEDDING_STD)
        elif name.endswith("pos_embed"):
            with torch.no_grad():
                parameter[0] = POSITION_STD * _smooth_patches(*parameter.shape[1:])
    language = model.language_model
    for rows in (language.model.embed_tokens.weight, language.lm_head.weight):
        std = float(rows.detach().std())
        with torch.no_grad():
            rows[FIRST_ACTION_TOKEN:VOCABULARY] = std * _smooth_rows(rows.shape[1])


def _smooth_patches(patches: int, width: int) -> torch.Tensor:
    """Return (N, width) of unit variance: random waves over the image, neighbours half alike."""
    side = round(patches**0.5)
    at = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()  # (N, 2)
    phases = 2 * torch.pi * torch.rand(width)
    return 2**0.5 * torch.cos(at @ torch.randn(2, width) + phases)


def _smooth_rows(width: int) -> torch.Tensor:
    """Return (256, width) of unit variance: random waves over the bins, about SMOOTH_BINS long."""
    waves = torch.randn(width) * (ACTION_BINS / SMOOTH_BINS)
    phases = 2 * torch.pi * torch.rand(width)
    at = torch.linspace(0, 1, ACTION_BINS)[:, None]
    return 2**0.5 * torch.cos(2 * torch.pi * waves * at + phases)


def train_tokenizer() -> Tokenizer:
    """Return a byte-level BPE tokenizer of the prompts, with Llama's special ids 0, 1 and 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([prompt(text) for text in instructions()], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def main(argv: list[str] | None = None) -> int:
    """Build from the command line."""
    parser = argparse.ArgumentParser(prog="python -m crane_x7_vla_rl.policies.openvla.builder")
    parser.add_argument("folder", type=Path, help="folder for the checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (%(default)s)")
    for leaf in leaves(Sizes):
        text = f"{leaf.text.rstrip('.')} (%(default)s)"
        parser.add_argument(leaf.flag, type=int, default=leaf.default, help=text)
    parser.add_argument("--state-tokens", action="store_true", help="also read the measured joints")
    parser.add_argument(
        "--chunk-steps", type=int, default=1, help="actions per prediction (%(default)s)"
    )
    parser.add_argument(
        "--period-s", type=float, default=PERIOD_S, help="time between actions (%(default)s)"
    )
    parser.add_argument(
        "--view", type=float, nargs=4, default=WHOLE, metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"),
        help="part of the image that the model sees, in shares of width and height (default: all)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    sizes = Sizes(**{name: getattr(args, name) for name in asdict(Sizes())})
    try:
        reinforced = {"action_std", "action_correlation"}
        built = asdict(PolicySpec()).keys() - reinforced
        asked = {name: getattr(args, name) for name in built}
        inputs = PolicySpec.from_dict(asked, "the flags")
        folder = build(args.folder, sizes, args.seed, inputs)
    except (CheckpointError, ModelConfigError, OSError) as error:
        print(f"builder: {error}", file=sys.stderr)
        return 1
    size_mb = (folder / SINGLE).stat().st_size / 1e6
    print(f"{folder}: {size_mb:.1f} MB, random weights; train it before use")
    return 0


if __name__ == "__main__":
    sys.exit(main())
