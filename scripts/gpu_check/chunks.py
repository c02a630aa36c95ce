"""OpenVLA-OFT on the fixture, with random heads, against float64 on the CPU. Device → figures.

Both sides have the same weights, so the heads need not be trained.

Legend: B samples, T steps of a chunk, D action dimensions, P dimensions of the state.
"""

from __future__ import annotations

import copy
from typing import Final

import torch
from sft_bench.figures import Figures
from torch import Tensor

from crane_x7_vla_rl.policies.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.model.oft_heads import ActionHead, ProprioProjector
from crane_x7_vla_rl.policies.openvla.run.oft import ChunkSettings, OpenVLAOft
from gpu_check.fixture import Fixture

ACTION_DIM, STATE_DIM, STEPS = 7, 8, 4
LIMITS: Final = {"float32": 1e-4, "bfloat16": 0.06}
"""Largest difference of a normalised action, whose range in training is −1 to 1. bfloat16 has
twice the difference of a CPU."""

Case = tuple[Tensor, list[Tensor], Tensor]
"""Pixels, prompts and normalised states (B, P)."""


def with_heads(model: OpenVLA) -> OpenVLAOft:
    """Return the model as OpenVLA-OFT, with the same random heads each time."""
    hidden = model.config.text.hidden_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head, proprio = ActionHead(hidden, ACTION_DIM), ProprioProjector(STATE_DIM, hidden)
    like = model.projector.fc3.bias
    policy = OpenVLAOft(model, head, proprio, ChunkSettings(STEPS))
    return policy.to(device=like.device, dtype=like.dtype).eval()


def cases(fixture: Fixture) -> dict[str, Case]:
    """Return what is compared, by name."""
    pixels, prompts = fixture.pixels, fixture.prompts
    states = torch.linspace(-1, 1, fixture.count * STATE_DIM).view(fixture.count, STATE_DIM)
    two = torch.cat([pixels, pixels.flip(0)], dim=1)  # (B, 12, 224, 224)
    one = slice(0, 1)
    return {
        "one sample": (pixels[one], prompts[:1], states[one]),
        "a batch of unequal prompts": (pixels, prompts, states),
        "two images": (two[one], prompts[:1], states[one]),
    }


def difference(policy: OpenVLAOft, exact: OpenVLAOft, case: Case) -> float:
    """Return the largest difference of a call and of the same call again, which is replayed."""
    wanted = exact.predict_normalised(*case)
    calls = [policy.on_host(policy.predict_normalised(*case)) for _ in range(2)]
    return max(float((found.double() - wanted).abs().max()) for found in calls)


def run(figures: Figures, fixture: Fixture, model: OpenVLA, name: str) -> None:
    """Write the difference of the actions in each case."""
    policy = with_heads(model)
    exact = with_heads(copy.deepcopy(model).to(device="cpu", dtype=torch.float64))
    for words, case in cases(fixture).items():
        found = difference(policy, exact, case)
        figures.row(f"{name}, OpenVLA-OFT, {words}: actions", found, "of −1 to 1",
                    at_most=LIMITS[name])  # fmt: skip
