"""Checkpoints with one weight that is not a number, and such a weight's place in each part."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

LANGUAGE = "language_model.model."
PARTS = {
    "dinov2": "vision_backbone.featurizer.blocks.0.mlp.fc1.weight",
    "siglip": "vision_backbone.fused_featurizer.patch_embed.proj.bias",
    "projector": "projector.fc2.weight",
    "query": f"{LANGUAGE}layers.0.self_attn.q_proj.weight",
    "value": f"{LANGUAGE}layers.1.self_attn.v_proj.weight",
    "mlp": f"{LANGUAGE}layers.0.mlp.down_proj.weight",
    "norm": f"{LANGUAGE}norm.weight",
    "lm_head": "language_model.lm_head.weight",
}
"""Each a weight whose last value reaches the logits; the head's rows of actions come last but for
64 of padding."""
VALUES = {"NaN": float("nan"), "Inf": float("inf"), "-Inf": float("-inf")}


def place(name: str, weight: torch.Tensor) -> tuple[int, ...]:
    """Return where to put a value so that the logits depend on it."""
    last = tuple(size - 1 for size in weight.shape)
    return (31900, *last[1:]) if name == PARTS["lm_head"] else last


def spoil(weight: torch.Tensor, name: str, value: float) -> None:
    """Put the value into the weight."""
    with torch.no_grad():
        weight[place(name, weight)] = value


def copied(base: Path, folder: Path, name: str, value: float) -> Path:
    """Return a copy of a checkpoint with the value in the weight of that name."""
    shutil.copytree(base, folder, copy_function=shutil.copyfile)
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if name in tensors:
            spoil(tensors[name], name, value)
            save_file(tensors, path, metadata={"format": "pt"})
    return folder


def too_large(base: Path, folder: Path) -> Path:
    """Return a copy whose weights are numbers, but too large to be multiplied."""
    shutil.copytree(base, folder, copy_function=shutil.copyfile)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[PARTS["projector"]] *= 1e38
    tensors["projector.fc3.weight"] *= 1e38
    save_file(tensors, path, metadata={"format": "pt"})
    return folder
