"""Tiny LeRobot checkpoints with random weights: ACT, diffusion, SmolVLA, π0 and π0.5, offline.

Runs inside LeRobot's environment, as a program or imported:

    export PYTHONPATH=.:tests/rigs/lerobot_sizes
    .venv-lerobot/bin/python tests/rigs/lerobot_tiny.py pi0 FOLDER

`FOLDER` then is a checkpoint as LeRobot writes it. π0 and π0.5 find their tokenizer in the same
folder, SmolVLA its vision-language model's configuration and tokenizer in `FOLDER/vlm`, so
`lerobot-train --policy.path=FOLDER` trains them without the Hub. `tests/rigs/lerobot_sizes` gives
π0 and π0.5 their small sizes, and must be on PYTHONPATH whenever such a checkpoint is loaded.

The targets that these policies predict lie near the arm's home pose: they drive, and lift nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins

from crane_x7_vla_rl.robot import HOME_RAD

KINDS = ("act", "diffusion", "smolvla", "pi0", "pi05")
CAMERA = "base"
CHUNK = 10
PERIOD_S = 0.1
GRIPPER_RAD = 0.7
"""Half open: random targets near the closed gripper's would often lie beyond its limit."""
SPREAD_RAD = 0.02
"""Standard deviation of states and actions in the statistics."""
WORDS = "pick up the red blue green cube place it on plate lift task state action ; : , . 0 1 2 3"
SMALL = {"chunk_size": CHUNK, "n_action_steps": CHUNK}
OPTIONS = {
    "act": SMALL
    | {"dim_model": 64, "n_heads": 4, "dim_feedforward": 128, "n_encoder_layers": 1,
       "n_vae_encoder_layers": 1, "pretrained_backbone_weights": None},
    "diffusion": {"horizon": 16, "n_action_steps": 8, "down_dims": (32, 64), "n_groups": 8,
                  "num_train_timesteps": 10, "num_inference_steps": 2, "crop_shape": None,
                  "pretrained_backbone_weights": None, "diffusion_step_embed_dim": 32},
    "smolvla": SMALL
    | {"num_vlm_layers": 2, "num_steps": 2, "resize_imgs_with_padding": (64, 64),
       "expert_width_multiplier": 0.5, "load_vlm_weights": False},
    "pi0": SMALL | {"image_resolution": (56, 56), "num_inference_steps": 2},
    "pi05": SMALL | {"image_resolution": (56, 56), "num_inference_steps": 2},
}  # fmt: skip


def make(
    kind: str,
    folder: Path,
    size: tuple[int, int] = (96, 64),
    cameras: tuple[str, ...] = (CAMERA,),
    seed: int = 0,
    **options: object,
) -> Path:
    """Write a checkpoint with random weights to `folder`, and return it.

    `size` is the images' (width, height); `options` are fields of LeRobot's configuration.
    """
    register_third_party_plugins()
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    width, height = size
    options = {**OPTIONS[kind], **options}
    if kind == "smolvla":
        make_vision_language_model(folder / "vlm")
        options["vlm_model_name"] = str((folder / "vlm").resolve())
    elif kind in ("pi0", "pi05"):
        make_tokenizer(folder)
    config = make_policy_config(
        kind,
        device="cpu",
        push_to_hub=False,
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (8,)),
            **{
                f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, height, width))
                for name in cameras
            },
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (8,))},
        **options,
    )
    policy = get_policy_class(kind)(config)
    before, after = _processors(kind, config, folder, cameras)
    policy.save_pretrained(folder)
    before.save_pretrained(folder)
    after.save_pretrained(folder)
    (folder / "policy_io.yaml").write_text(json.dumps(policy_io(size, cameras)))  # JSON is YAML
    return folder


def policy_io(size: tuple[int, int], cameras: tuple[str, ...]) -> dict[str, object]:
    """What these policies read and write: radians in the project's order of joints."""
    images = [
        {"key": f"observation.images.{name}", "resize": "stretch",
         "source": "wrist" if name == "wrist" else "camera",
         "size": f"{size[0]}x{size[1]}", "layout": "hwc", "colour": "rgb", "range": "uint8"}
        for name in cameras
    ]  # fmt: skip
    return {
        "images": images,
        "state": [{"key": "observation.state", "joints": "all", "unit": "rad"}],
        "prompt": "task",
        "action": {
            "key": "actions", "kind": "joint_target", "joints": "all", "unit": "rad",
            "period_s": PERIOD_S,
        },
    }  # fmt: skip


def statistics(cameras: tuple[str, ...] = (CAMERA,)) -> dict[str, dict[str, np.ndarray]]:
    """Statistics of states and actions near the home pose, as a data set's."""
    home, spread = HOME_RAD.astype(np.float32), np.full(8, SPREAD_RAD, np.float32)
    home[7] = GRIPPER_RAD
    values = {
        "mean": home, "std": spread, "min": home - 3 * spread, "max": home + 3 * spread,
        "q01": home - 2 * spread, "q99": home + 2 * spread,
    }  # fmt: skip
    channel = np.ones((3, 1, 1), np.float32)
    pixels = {"mean": channel / 2, "std": channel / 4, "min": channel * 0, "max": channel}
    images = {f"observation.images.{name}": pixels for name in cameras}
    return {"observation.state": values, "action": values, **images}


def _processors(kind: str, config, folder: Path, cameras: tuple[str, ...]):
    """LeRobot's own processors; the gated tokenizer that it names is replaced by ours."""
    from lerobot.processor import tokenizer_processor

    theirs = tokenizer_processor.AutoTokenizer
    stats = {
        name: {key: torch.from_numpy(value) for key, value in values.items()}
        for name, values in statistics(cameras).items()
    }

    class Ours:
        @staticmethod
        def from_pretrained(_name, **options):
            return theirs.from_pretrained(folder, **options)

    if kind in ("pi0", "pi05"):
        tokenizer_processor.AutoTokenizer = Ours
    try:
        before, after = make_pre_post_processors(config, dataset_stats=stats)
    finally:
        tokenizer_processor.AutoTokenizer = theirs
    for step in before.steps:
        if kind in ("pi0", "pi05") and getattr(step, "tokenizer_name", None) is not None:
            step.tokenizer_name = str(folder.resolve())
    return before, after


def make_tokenizer(folder: Path, special: tuple[str, ...] = (), **names: str):
    """Write a byte-level BPE tokenizer, with PaliGemma's special tokens, and return it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<pad>", "<eos>", "<bos>", "<unk>", *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 4, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>",
        **names,
    )  # fmt: skip
    made.save_pretrained(folder)
    return made


def make_vision_language_model(folder: Path) -> None:
    """Write the configuration and the processor of a tiny SmolVLM; its weights are SmolVLA's."""
    from transformers import (
        SmolVLMConfig,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    special = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    tokenizer = make_tokenizer(
        folder,
        special,
        extra_special_tokens={
            "image_token": special[0], "fake_image_token": special[1],
            "global_image_token": special[2], "end_of_utterance_token": special[3],
        },
    )  # fmt: skip
    config = SmolVLMConfig(
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 64, "patch_size": 16,
        },
        text_config={
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 16, "vocab_size": len(tokenizer), "pad_token_id": 0,
        },
    )  # fmt: skip
    config.architectures = ["SmolVLMForConditionalGeneration"]
    config.save_pretrained(folder)
    SmolVLMProcessor(
        SmolVLMImageProcessor(), tokenizer, SmolVLMVideoProcessor(), image_seq_len=4
    ).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="96x64", help="of the images, WIDTHxHEIGHT")
    parser.add_argument("--cameras", nargs="+", default=[CAMERA])
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    print(make(args.kind, args.folder, (width, height), tuple(args.cameras)))


if __name__ == "__main__":
    main()
