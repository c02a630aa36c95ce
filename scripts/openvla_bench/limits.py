"""The limits of bench_openvla: least work of an OpenVLA, and the speed of this device.

The device's memory bandwidth and matrix throughput are measured. The model's sizes give the
operations (FLOP) and bytes of each part, and so its least time on this device.

Legend: B batch, T tokens of prompt and image together, D action tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from crane_x7_vla_rl.policies.openvla.model.config import (
    PATCH_SIZE,
    PATCHES,
    OpenVLAConfig,
    TowerConfig,
)

SECONDS = 0.5
"""Longest time of each measurement of the device."""


@dataclass(frozen=True)
class Device:
    """Measured speed of this device."""

    bytes_s: float
    """Reading and writing memory, bytes per second."""
    flop_s: float
    """Matrix products in the dtype of the model, FLOP per second."""


def synchronise(device: torch.device) -> None:
    """Wait until everything enqueued on `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return the shortest time of one `run`, after a warm-up run."""
    run()
    synchronise(device)
    best, begun_s = float("inf"), time.perf_counter()
    while time.perf_counter() - begun_s < SECONDS:
        started_s = time.perf_counter()
        run()
        synchronise(device)
        best = min(best, time.perf_counter() - started_s)
    return best


def measure(device: torch.device, dtype: torch.dtype) -> Device:
    """Return bandwidth and matrix throughput."""
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    flop_s = 2 * side**3 / best_seconds(lambda: left @ right, device)
    return Device(_bandwidth(device), flop_s)


def _bandwidth(device: torch.device) -> float:
    """Return the better of a copy and a sum, over far more bytes than any cache."""
    size = (1 << 31) if device.type == "cuda" else (1 << 27)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target, words = torch.empty_like(source), source.view(torch.float32)
    copied = 2 * size / best_seconds(lambda: target.copy_(source), device)
    return max(copied, size / best_seconds(words.sum, device))


def _tower(config: TowerConfig) -> float:
    """FLOP of one image through all blocks but the last."""
    tokens = PATCHES + config.registers + config.class_token
    width = config.embed_dim
    block = 2 * tokens * (4 * width**2 + 2 * width * config.mlp_dim) + 4 * tokens**2 * width
    return (config.depth - 1) * block + 2 * PATCHES * 3 * PATCH_SIZE**2 * width


def vision_flop(config: OpenVLAConfig) -> float:
    """FLOP of one image through both towers and the projector."""
    wide, hidden = config.vision_dim, config.text.hidden_size
    projector = 2 * PATCHES * (4 * wide**2 + 4 * wide * hidden + hidden**2)
    return _tower(config.dinov2) + _tower(config.siglip) + projector


def layer_parameters(config: OpenVLAConfig) -> int:
    """Weights of the language model's layers, used for every token."""
    text = config.text
    keys = text.num_key_value_heads * text.head_dim
    attention = 2 * text.hidden_size * (text.hidden_size + keys)
    mlp = 3 * text.hidden_size * text.intermediate_size
    return text.num_hidden_layers * (attention + mlp)


def prefill_flop(config: OpenVLAConfig, tokens: int) -> float:
    """FLOP of `tokens` through the language model, causal attention included."""
    text = config.text
    attention = 2 * tokens**2 * text.hidden_size * text.num_hidden_layers
    return 2.0 * tokens * layer_parameters(config) + attention


def decode_bytes(config: OpenVLAConfig, batch: int, tokens: int, weight_bytes: float) -> float:
    """Bytes that one decode step must read: all weights once, and each sample's keys and values."""
    text = config.text
    weights = layer_parameters(config) * weight_bytes + 256 * text.hidden_size * 2
    keys = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 2
    return weights + batch * tokens * keys


@dataclass(frozen=True)
class Limit:
    """Least seconds of each part of one batch."""

    vision_s: float
    prefill_s: float
    decode_s: float

    @property
    def total_s(self) -> float:
        """Least seconds of the whole batch."""
        return self.vision_s + self.prefill_s + self.decode_s


def generate_limit(
    config: OpenVLAConfig, here: Device, batch: int, tokens: int, steps: int, item_bytes: float = 2
) -> Limit:
    """Return the least time of `generate`: arithmetic binds vision and prefill, memory decode.

    `item_bytes`: size of one weight in decode, 2 for bfloat16. A prefill also takes at least the
    time to read the weights once.
    """
    prefill_s = max(
        batch * prefill_flop(config, tokens) / here.flop_s,
        2 * layer_parameters(config) / here.bytes_s,
    )
    decode_s = sum(
        max(
            decode_bytes(config, batch, tokens + step, item_bytes) / here.bytes_s,
            batch * 2 * layer_parameters(config) / here.flop_s,
        )
        for step in range(1, steps)
    )
    return Limit(batch * vision_flop(config) / here.flop_s, prefill_s, decode_s)


def evaluate_flop(config: OpenVLAConfig, batch: int, tokens: int, steps: int) -> float:
    """FLOP of one forward pass of `evaluate`.

    With frozen weights and recomputation, forward and backward together take three times this:
    forward, recomputed forward, gradients of the activations.
    """
    return batch * (vision_flop(config) + prefill_flop(config, tokens + steps - 1))
