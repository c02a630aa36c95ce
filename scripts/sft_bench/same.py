"""Whether both sides of bench_sft learn the same from the same frames; else speeds are not
comparable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crane_x7_vla_rl.training.sft.samples import model_batch
from sft_bench.ours import Ours
from sft_bench.plain import Frames, collate

SCALE = 0.02
"""Spread of the adapters' second matrices: they begin at zero, and the first ones would get no
gradient."""
PREFIX = "base_model.model."
"""PEFT's prefix of the names in `Wrapped`, which are those of `TokenLoss`."""


@dataclass(frozen=True)
class Difference:
    """Largest differences of the two sides, relative to this project's."""

    pixels: float
    """Absolute difference of normalised pixels."""
    loss: float
    gradient: float
    """Norm of the difference of all gradients / norm of this project's gradients."""


def compare(ours: Ours, peft: Any, frames: Frames) -> Difference:
    """Return how the sides differ on the next batch; afterwards both have the same adapters.

    Dropout is off meanwhile. Raises RuntimeError if they do not have the same adapters.
    """
    run, device = ours.run, ours.case.device
    learning, theirs = _adapters(run.learner.module, ""), _adapters(peft, PREFIX)
    if odd := sorted(learning.keys() ^ theirs.keys()):
        raise RuntimeError(f"{odd[0]} and {len(odd) - 1} more have adapters only on one side")
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in learning.items():
            if ".lora_B." in name:
                parameter.normal_(0, SCALE)
            theirs[name].copy_(parameter)
    batch = next(run.batches)
    asked = model_batch(batch, run.codec, run.learner.like)
    places = zip(batch.episodes, batch.frames, batch.places, strict=True)
    plain = collate([frames.sample(int(e), int(t), int(place)) for e, t, place in places])
    plain = {"input_ids": plain["input_ids"], **{
        key: plain[key].to(device) for key in ("pixels", "labels")
    }}  # fmt: skip
    run.learner.module.eval()
    peft.eval()
    our_loss = run.learner.module(asked.pixels, asked.prompts, asked.tokens)
    run.accelerator.backward(our_loss)
    with torch.autocast(device.type, torch.bfloat16, enabled=ours.case.halved):
        their_loss = peft(**plain)["loss"]
    their_loss.backward()
    apart = _length([theirs[name].grad - p.grad for name, p in learning.items()])  # type: ignore[operator]
    whole = _length([p.grad for p in learning.values()])  # type: ignore[misc]
    result = Difference(
        float((asked.pixels.float() - plain["pixels"].to(asked.pixels).float()).abs().max()),
        abs(our_loss.item() - their_loss.item()) / abs(our_loss.item()),
        apart / whole,
    )
    for module in (run.learner.module, peft):
        module.zero_grad(set_to_none=True)
        module.train()
    return result


def _adapters(module: torch.nn.Module, prefix: str) -> dict[str, torch.nn.Parameter]:
    return {
        name.removeprefix(prefix): parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def _length(gradients: list[Tensor]) -> float:
    return float(sum(gradient.double().square().sum() for gradient in gradients)) ** 0.5
