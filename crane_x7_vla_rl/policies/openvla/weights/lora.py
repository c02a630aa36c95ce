"""New LoRA adapters for training, by PEFT. A model and settings → the model, adapted in place.

The model stays an `OpenVLA`: its weights are frozen, each target becomes a PEFT layer in place (one
of `lora_layers`), and a `Runner` detects it. `loading` loads stored adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from torch import nn

from crane_x7_vla_rl.fields import quoted
from crane_x7_vla_rl.policies.openvla.errors import AdapterError
from crane_x7_vla_rl.policies.openvla.model.openvla import OpenVLA

ALL_LINEAR: Final = "all-linear"


@dataclass(frozen=True)
class LoraSettings:
    """Modules that get low-rank updates, and the size of the updates."""

    rank: int = 32
    alpha: float = 16.0
    """An update is scaled by alpha / rank."""
    dropout: float = 0.0
    targets: Sequence[str] | Literal["all-linear"] = ALL_LINEAR
    """Ends of module names, such as q_proj or language_model.lm_head; or ALL_LINEAR: every linear
    layer and convolution whose output the model reads."""


def add_lora(model: OpenVLA, settings: LoraSettings) -> int:
    """Freeze the model, add adapters to the targets, and return the number of trained parameters.

    Raises AdapterError for a rank below 1, or a target that matches no module.
    """
    from peft import LoraConfig, inject_adapter_in_model

    from crane_x7_vla_rl.policies.openvla.weights.lora_layers import AdaptedConv2d, AdaptedLinear

    if settings.rank < 1:
        raise AdapterError(f"LoRA rank is {settings.rank}, expected 1 or more")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=_names(model, settings.targets),
    )
    config._register_custom_module({nn.Linear: AdaptedLinear, nn.Conv2d: AdaptedConv2d})
    inject_adapter_in_model(config, model)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _names(model: OpenVLA, targets: Sequence[str]) -> list[str]:
    """Return the full names of the target modules."""
    known = _adaptable(model)
    if targets == ALL_LINEAR:
        return known
    if isinstance(targets, str):
        raise AdapterError(f"LoRA targets are {quoted(targets)}, expected {ALL_LINEAR!r} or a list")
    found: list[str] = []
    for target in targets:
        matches = [name for name in known if name == target or name.endswith(f".{target}")]
        if not matches:
            ends = ", ".join(sorted({name.rpartition(".")[2] for name in known}))
            raise AdapterError(
                f'LoRA target "{target}" matches no linear layer or convolution that the model'
                f" reads; known ends of names: {ends}"
            )
        found += matches
    return list(dict.fromkeys(found))


def _adaptable(model: OpenVLA) -> list[str]:
    """Return the linear layers and convolutions that affect the output, in order."""
    vision = model.vision_backbone
    skipped = []
    for name, tower in (
        ("featurizer", vision.featurizer),
        ("fused_featurizer", vision.fused_featurizer),
    ):
        prefix = f"vision_backbone.{name}."
        skipped += [f"{prefix}blocks.{len(tower.blocks) - 1}.", f"{prefix}attn_pool."]
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and not name.startswith(tuple(skipped))
    ]
