"""The least work of an update with adapters, for bench_sft's limit.

A model with its adapters and the length of its sequences → FLOP per sample, counted from the
released design: frozen weights cost a product forward and one backward (they have no gradient),
attention and adapters one forward and two backward. The last layer computes only the positions that
are read; the first convolution passes no gradient on.

Legend: T positions of a sequence, D action tokens, N patches.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from crane_x7_vla_rl.actions import ACTION_BINS
from crane_x7_vla_rl.policies.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.model.config import TowerConfig


def update_flop(model: OpenVLA, text: int, answer: int) -> float:
    """Return FLOP of forward and backward for one sample.

    `text` counts the prompt's ids with BOS, without 29871; `answer` is D.
    """
    config = model.config
    length = config.patches + text + answer  # 29871 and the whole answer except its last token
    linear = adapters = 0.0
    for name, module in model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        base: Any = module.base_layer  # type: ignore[union-attr]
        tokens = _tokens(name, model, length, answer)
        wide, high = base.weight[0].numel(), base.weight.shape[0]
        rank = next(iter(module.lora_A.values())).weight.shape[0]  # type: ignore[operator, union-attr]
        read = ACTION_BINS if name.endswith("lm_head") else high
        passes = 1 if isinstance(base, nn.Conv2d) else 2
        linear += passes * 2.0 * tokens * wide * read
        # The first matrix: gradient and output, and the input's gradient if it has one; then the
        # second.
        adapters += 2.0 * tokens * rank * ((1 + passes) * wide + 3 * read)
    return linear + 3 * attention_flop(model, length, answer) + adapters


def attention_flop(model: OpenVLA, length: int, answer: int) -> float:
    """Return FLOP of all attention of one sample, forward."""
    text = model.config.text
    layers = (text.num_hidden_layers - 1) * 2.0 * length**2 + 4.0 * answer * length
    towers = (_tower(tower) for tower in (model.config.dinov2, model.config.siglip))
    return text.num_attention_heads * text.head_dim * layers + sum(towers)


def _tower(config: TowerConfig) -> float:
    return (config.depth - 1) * 4.0 * _seen(config) ** 2 * config.embed_dim


def _seen(config: TowerConfig) -> int:
    return config.patches + config.registers + int(config.class_token)


def _tokens(name: str, model: OpenVLA, length: int, answer: int) -> int:
    """Return the number of positions of a sample in the module."""
    config, last = model.config, len(model.language_model.model.layers) - 1
    if "patch_embed" in name or name.startswith("projector"):
        return config.patches
    if name.startswith("vision_backbone.featurizer"):
        return _seen(config.dinov2)
    if name.startswith("vision_backbone.fused"):
        return _seen(config.siglip)
    keys = name.endswith(("k_proj", "v_proj"))
    if name.endswith("lm_head") or (f"layers.{last}." in name and not keys):
        return answer
    return length
