"""The tiny OpenVLA checkpoint of the tests, and what the original code computes on it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from PIL import Image
from places import FIXTURES
from safetensors.torch import load_file
from torch import Tensor

from crane_x7_vla_rl.policies.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.weights import loading

FIXTURE = FIXTURES / "openvla_tiny"
CHECKPOINT = FIXTURE / "checkpoint"
KEYS = (("bridge_orig", 7), ("crane_x7", 8))
COUNT = 4


@lru_cache(maxsize=1)
def expected() -> dict[str, Tensor]:
    """Return the original's tensors by name."""
    return load_file(FIXTURE / "expected.safetensors")


def images() -> list[Image.Image]:
    return [Image.open(FIXTURE / "images" / f"{index}.png") for index in range(COUNT)]


def prompts() -> list[Tensor]:
    """Return ids of four prompts of unequal length."""
    return [expected()[f"input_ids.{index}"] for index in range(COUNT)]


def tokens(key: str) -> Tensor:
    """Return (4, D): the original's greedy tokens."""
    return torch.stack([expected()[f"tokens.{key}.{index}"] for index in range(COUNT)])


def action_logits() -> Tensor:
    """Return (4, 8, 256): the original's logits of the action rows at each step."""
    return torch.stack([expected()[f"step_logits_action_bins.{index}"] for index in range(COUNT)])


def load(dtype: torch.dtype = torch.float32) -> OpenVLA:
    return loading.load(CHECKPOINT, dtype=dtype).model


def transformers_llama(model: OpenVLA) -> Any:
    """Return transformers' Llama with the model's weights: an independent implementation."""
    from transformers import LlamaConfig, LlamaForCausalLM

    text = model.config.text
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_hidden_layers=text.num_hidden_layers,
            num_attention_heads=text.num_attention_heads,
            rms_norm_eps=text.rms_norm_eps,
        )
    ).eval()
    theirs.load_state_dict(model.language_model.state_dict())
    return theirs
