"""A small OpenVLA-OFT checkpoint with random heads, in the layout that its authors release."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import openvla_rig as rig
import torch
from safetensors.torch import save_file
from torch import Tensor

from crane_x7_vla_rl.policies.openvla import builder

HIDDEN, ACTION_DIM, STATE_DIM, STEPS = 32, 7, 8, 4
KEY = "libero_spatial_no_noops"
STATISTICS = {
    KEY: {
        "action": {
            "q01": [-0.5] * 7, "q99": [1.0] * 7, "min": [-2.0] * 7, "max": [2.0] * 7,
            "mask": [True] * 6 + [False],
        },
        "proprio": {"q01": [-1.0] * 7 + [0.0], "q99": [3.0] * 7 + [0.0]},
    }
}  # fmt: skip


def head_weights() -> dict[str, Tensor]:
    """Return an action head as released checkpoints hold it: trained on several processes."""
    draw = torch.Generator().manual_seed(5)
    wide = HIDDEN * ACTION_DIM
    shapes = {
        "layer_norm1": (wide,), "fc1": (HIDDEN, wide), "layer_norm2": (HIDDEN,),
        "mlp_resnet_blocks.0.ffn.0": (HIDDEN,), "mlp_resnet_blocks.0.ffn.1": (HIDDEN, HIDDEN),
        "mlp_resnet_blocks.1.ffn.0": (HIDDEN,), "mlp_resnet_blocks.1.ffn.1": (HIDDEN, HIDDEN),
        "fc2": (ACTION_DIM, HIDDEN),
    }  # fmt: skip
    weights = {}
    for name, shape in shapes.items():
        weights[f"module.model.{name}.weight"] = 0.3 * torch.randn(shape, generator=draw)
        weights[f"module.model.{name}.bias"] = 0.3 * torch.randn(shape[:1], generator=draw)
    return weights


def proprio_weights() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(6)
    return {
        "module.fc1.weight": torch.randn(HIDDEN, STATE_DIM, generator=draw),
        "module.fc1.bias": torch.randn(HIDDEN, generator=draw),
        "module.fc2.weight": 0.3 * torch.randn(HIDDEN, HIDDEN, generator=draw),
        "module.fc2.bias": torch.randn(HIDDEN, generator=draw),
    }


SMALL = {"q01": [-0.01] * 3 + [-0.05] * 3 + [0.0], "q99": [0.01] * 3 + [0.05] * 3 + [1.0]}
"""Steps of the tool that the arm can follow."""
STATE = {"q01": [-3.0] * 8, "q99": [3.0] * 8}
QUERY = "base_model.model.language_model.model.layers.0.self_attn.q_proj"


def write_for_arm(folder: Path) -> Path:
    """Write the checkpoint with a tokenizer and statistics that suit a CRANE-X7."""
    write(folder)
    builder.train_tokenizer().save(str(folder / "tokenizer.json"))
    statistics = {KEY: {"action": SMALL, "proprio": STATE}}
    (folder / "dataset_statistics.json").write_text(json.dumps(statistics))
    return folder


def write_adapter(folder: Path, base: Path, **config: object) -> Path:
    """Write an adapter of `base` that changes one weight by nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    halves = {"lora_A": (2, HIDDEN), "lora_B": (HIDDEN, 2)}
    tensors = {f"{QUERY}.{half}.weight": torch.zeros(shape) for half, shape in halves.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    whole = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(whole | config))
    return folder


def write(folder: Path) -> Path:
    """Write the checkpoint into a new `folder` and return it."""
    shutil.copytree(rig.CHECKPOINT, folder, copy_function=shutil.copyfile)
    (folder / "dataset_statistics.json").write_text(json.dumps(STATISTICS))
    torch.save(head_weights(), folder / "action_head--150000_checkpoint.pt")
    torch.save(proprio_weights(), folder / "proprio_projector--150000_checkpoint.pt")
    (folder / "lora_adapter").mkdir()
    return folder
