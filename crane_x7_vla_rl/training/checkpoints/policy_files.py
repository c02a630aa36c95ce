"""The files of a folder that VLA_MODEL_PATH can name: weights or an adapter, and descriptions.

Tensors and descriptions → files: `model.safetensors` (or shards) with `config.json`,
or `adapter_model.safetensors` with `adapter_config.json`, which names the base; also the
statistics, the tokenizer, `policy.json`, and whether images must be cropped. `save` decides when
and where to write.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from crane_x7_vla_rl.policies import hub
from crane_x7_vla_rl.policies.about import DEMOS
from crane_x7_vla_rl.policies.openvla.codec import PolicySpec
from crane_x7_vla_rl.policies.openvla.weights import adapters
from crane_x7_vla_rl.policies.openvla.weights.layout import (
    CENTER_CROP,
    CONFIG,
    PREPROCESSOR,
    STATISTICS,
    TOKENIZER,
    Layout,
)
from crane_x7_vla_rl.training.config.sections import LoraConfig

SHARD_BYTES: Final = 5_000_000_000
"""Largest size of one file of weights, as usual for Hub models."""
READABLE: Final = 0o644
"""safetensors writes files that other users may not read."""
HALVES: Final = (".lora_A.default.weight", ".lora_B.default.weight")


@dataclass(frozen=True)
class PolicyAssets:
    """What a policy needs in addition to its weights."""

    statistics: Mapping[str, Any]
    """By data set, as in dataset_statistics.json."""
    tokenizer: Path
    center_crop: bool
    """Whether training used random crops."""
    inputs: PolicySpec
    demonstrations: Path | None = None
    """`demos.json` of the simulated demonstrations that it learned from."""

    @classmethod
    def of(
        cls, layout: Layout, statistics: Mapping[str, Any], center_crop: bool, inputs: PolicySpec,
        demonstrations: Path | None = None,
    ) -> PolicyAssets:  # fmt: skip
        """Return them with the tokenizer of a layout that a codec has been read from."""
        tokenizer = layout.first(TOKENIZER)
        assert tokenizer is not None  # the codec could not be read without
        return cls(statistics, tokenizer, center_crop, inputs, demonstrations)


@dataclass(frozen=True)
class Base:
    """The model that an adapter adapts, as its adapter_config.json names it."""

    folder: Path
    """Its folder on this machine."""
    name: str
    """Hub id; empty for a folder, which is named relatively."""
    revision: str | None

    @classmethod
    def of(cls, model: str, layout: Layout) -> Base:
        """Return the base that `model`, folder or Hub id, named; an id is pinned to its commit."""
        match = hub.REPO_ID.fullmatch(model)
        if match is None or Path(model).expanduser().is_dir():
            return cls(layout.base, "", None)
        is_snapshot = layout.base.parent.name == "snapshots"  # of the Hub's cache, by commit
        return cls(layout.base, match["name"], layout.base.name if is_snapshot else None)

    def named_from(self, folder: Path) -> str:
        """Return its name for an adapter in `folder`."""
        return self.name or os.path.relpath(self.folder.resolve(), folder.resolve())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def write_assets(folder: Path, around: PolicyAssets) -> None:
    """Write the files other than weights."""
    write_json(folder / STATISTICS, around.statistics)
    write_json(folder / PREPROCESSOR, {CENTER_CROP: around.center_crop})
    around.inputs.write(folder)
    shutil.copyfile(around.tokenizer, folder / TOKENIZER)
    if around.demonstrations is not None:
        shutil.copyfile(around.demonstrations, folder / DEMOS)


def write_weights(
    folder: Path, tensors: Mapping[str, Tensor], raw_config: Mapping[str, Any],
    statistics: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write a whole model; `raw_config` is its base's, and weights that were random are no more."""
    from huggingface_hub import save_torch_state_dict

    save_torch_state_dict(_owned(tensors), folder, max_shard_size=SHARD_BYTES)
    for path in folder.glob("*.safetensors"):
        path.chmod(READABLE)
    config = {key: value for key, value in raw_config.items() if key != "random_weights"}
    write_json(folder / CONFIG, config | {"norm_stats": dict(statistics)})


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one file of tensors by name; those of OpenVLA-OFT end with .pt."""
    from safetensors.torch import save_file

    if path.suffix == ".pt":
        torch.save(_owned(tensors), path)
        return
    save_file(_owned(tensors), path, metadata={"format": "pt"})
    path.chmod(READABLE)


def _owned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def write_adapter(
    folder: Path, place: Path, tensors: Mapping[str, Tensor], lora: LoraConfig, base: Base
) -> None:
    """Write adapters as PEFT does. `place` is the final path of `folder`.

    `tensors` are those of a model with injected adapters, by the names of its parameters.
    """
    stored = {}
    for name, tensor in tensors.items():
        half = next((half for half in HALVES if name.endswith(half)), None)
        if half is None:
            raise ValueError(f"{name} is not a LoRA matrix, expected a name ending with {HALVES}")
        key = adapters.PREFIX + name.removesuffix(half) + half.replace(".default", "")
        stored[key] = tensor
    write_tensors(folder / adapters.WEIGHTS, stored)
    modules = {name.removesuffix(half) for name in tensors for half in HALVES if half in name}
    write_json(
        folder / adapters.CONFIG,
        {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": base.named_from(place),
            "revision": base.revision,
            "r": lora.rank,
            "lora_alpha": lora.alpha,
            "lora_dropout": lora.dropout,
            "bias": "none",
            "target_modules": sorted(modules),
            "inference_mode": True,
        },
    )


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """Return what `write_adapter` wrote, by the names of the model's parameters."""
    from safetensors.torch import load_file

    return {
        key.removeprefix(adapters.PREFIX).removesuffix(".weight") + ".default.weight": tensor
        for key, tensor in load_file(folder / adapters.WEIGHTS).items()
    }
