"""The limits of a rollout and an update, for bench_rl: only simulation, and only matrix products.

The device's matrix throughput and the speed of simulation without a policy are measured; FLOP are
counted from the model. Simulation and products share the cores, so that their times add up.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from openvla_bench.limits import best_seconds
from sft_bench.flops import attention_flop, update_flop
from torch import nn

from crane_x7_vla_rl.actions import ACTION_BINS
from crane_x7_vla_rl.policies.openvla import OpenVLA
from crane_x7_vla_rl.robot import HOME_RAD, LOWER_RAD, UPPER_RAD
from crane_x7_vla_rl.sim.vector.protocol import VectorEnv
from rl_bench.ours import Ours

REACH_RAD = 0.3
"""Spread of random targets around the rest pose, like those of random weights (see the policies'
builder)."""


@dataclass(frozen=True)
class Work:
    """Least work of one decision."""

    infer_flop: float
    learn_flop: float
    """Sum of all epochs."""

    @classmethod
    def of(cls, ours: Ours) -> Work:
        """Count the work of one decision."""
        run, seen = ours.run, ours.run.env.look(0)
        (prompt,) = run.rollout.codec.prompts(seen.instructions[:1], np.asarray(seen.state_rad[:1]))
        policy, answer = run.agent.policy, run.rollout.codec.answer_length
        return cls(
            answer_flop(policy, len(prompt), answer),
            run.config.ppo.epochs * update_flop(policy, len(prompt), answer),
        )


def answer_flop(model: OpenVLA, text: int, answer: int) -> float:
    """Return FLOP of one prediction of `answer` tokens for `text` ids, with merged adapters.

    The towers' positions are counted by their own lengths; the last layer's only for tokens.
    """
    config = model.config
    length, last = config.patches + text + answer, len(model.language_model.model.layers) - 1
    towers = {"featurizer": config.dinov2, "fused_featurizer": config.siglip}
    total = attention_flop(model, length, answer)
    for name, module in model.named_modules():
        base = getattr(module, "base_layer", None)
        if not isinstance(base, nn.Linear | nn.Conv2d):
            continue
        tokens, high = length, base.weight.shape[0]
        if name.startswith("projector") or "patch_embed" in name:
            tokens = config.patches
        elif name.startswith("vision_backbone"):
            tower = towers[name.split(".")[1]]
            tokens = tower.patches + tower.registers + int(tower.class_token)
        elif name.endswith("lm_head"):
            tokens, high = answer, ACTION_BINS
        elif f"layers.{last}." in name and not name.endswith(("k_proj", "v_proj")):
            tokens = answer
        total += 2.0 * tokens * base.weight[0].numel() * high
    return total


def matrix_flop_s(device: torch.device, halved: bool) -> float:
    """Return the FLOP/s that one large product reaches now, on all cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        side = 8192 if device.type == "cuda" else 1024
        dtype = torch.bfloat16 if halved else torch.float32
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        return 2 * side**3 / best_seconds(lambda: left @ right, device)
    finally:
        torch.set_num_threads(threads)


def simulation_rate(env: VectorEnv, steps: int) -> float:
    """Return control steps/s of all environments, `steps` decisions each, without a policy."""
    draw = np.random.default_rng(0)

    def send(group: int) -> None:
        shape = (len(env.groups[group]), 1, len(HOME_RAD))
        targets: Any = HOME_RAD + draw.uniform(-REACH_RAD, REACH_RAD, shape)
        env.send(group, targets.clip(LOWER_RAD, UPPER_RAD).astype(np.float32))

    taken, groups = 0, range(len(env.groups))
    started_s = time.perf_counter()
    for group in groups:
        send(group)
    for step in range(steps):
        for group in groups:
            taken += int(env.receive(group).steps.sum())
            if step + 1 < steps:
                send(group)
    return taken / (time.perf_counter() - started_s)
