"""Whether batches of unequal prompts in bfloat16 lose more than rounding. Fixture → figures.

Tokens cannot tell: after the first that differs, every later one has another prefix, and the
fixture's four rows have steps whose two best logits are closer than bfloat16 rounds. So logits are
compared at equal prefixes: a float64 copy of the same weights, on the CPU, computes the
log-probabilities of the tokens that each way chose, or of the fixture's own. A way is fine if its
root mean square error is at most `MOST` times that of single prompts.

`spread_of_tokens` shows what rounding does to the share of kept tokens: pixels moved by
less than half a step of bfloat16, many times.

Legend: B samples, D action tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final
from unittest.mock import patch

import torch
from sft_bench.figures import Figures
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from crane_x7_vla_rl.policies.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.model.language import SelfAttention
from crane_x7_vla_rl.policies.openvla.run.evaluate import evaluate
from crane_x7_vla_rl.policies.openvla.run.rollout import CUDA_BUCKET
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
from gpu_check.fixture import Fixture, exact
from gpu_check.parts import Options

MOST: Final = 1.5
"""Largest error of a way, as a multiple of the error of single prompts."""
DRAWS: Final = 40
HALF_STEP: Final = 2**-9
"""Of bfloat16, relative."""
BACKENDS: Final = {
    "math": SDPBackend.MATH,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


@dataclass(frozen=True)
class Outcome:
    """What one way computed."""

    tokens: Tensor
    """(B, D)."""
    log_probs: Tensor
    """(B, D, 256) float64, of all action tokens, at the prefixes that `tokens` give."""


def error(ways: Outcome, truth: Tensor) -> tuple[float, float]:
    """Return root mean square and largest difference from log-probabilities `truth`."""
    difference = (ways.log_probs - truth).abs()
    return float(difference.square().mean().sqrt()), float(difference.max())


def forced(model: OpenVLA, pixels: Tensor, fixture: Fixture, together: bool) -> Outcome:
    """Evaluate the fixture's tokens, all prompts `together` or each alone."""
    tokens, prompts = fixture.tokens, fixture.prompts
    like = model.projector.fc3.bias
    groups = [slice(0, fixture.count)] if together else _single(fixture.count)
    with torch.no_grad():
        found = [
            evaluate(model, pixels[rows].to(like), prompts[rows], tokens[rows]).distribution
            for rows in groups
        ]
    return Outcome(tokens, torch.cat(found).cpu().double())


def chosen(runner: Runner, pixels: Tensor, fixture: Fixture, together: bool) -> Outcome:
    """Roll out greedily, all prompts `together` or each alone."""
    like, steps = runner.model.projector.fc3.bias, fixture.tokens.shape[1]
    groups = [slice(0, fixture.count)] if together else _single(fixture.count)
    found = [
        runner.roll_out(pixels[rows].to(like), fixture.prompts[rows], steps) for rows in groups
    ]
    logits = torch.cat([one.logits for one in found]).cpu().double()
    return Outcome(torch.cat([one.tokens for one in found]).cpu(), logits.log_softmax(-1))


def _single(count: int) -> list[slice]:
    return [slice(row, row + 1) for row in range(count)]


def truth_of(model: OpenVLA, fixture: Fixture, tokens: Tensor, pixels: Tensor) -> Tensor:
    """Return (B, D, 256) float64 for the `exact` model."""
    with torch.no_grad():
        return evaluate(model, pixels.double(), fixture.prompts, tokens).distribution.double()


def attention_in(scores: torch.dtype, shares: torch.dtype) -> Callable[..., Tensor]:
    """Return an attention that rounds scores, with their mask, and shares to these types.

    GPU kernels add the mask to float32 scores and multiply bfloat16 shares; plain torch operations
    in bfloat16 round both.
    """

    def mix(
        module: SelfAttention, query: Tensor, key: Tensor, value: Tensor,
        mask: Tensor | None, causal: bool,
    ) -> Tensor:  # fmt: skip
        repeat = module.heads // module.key_heads
        q, k, v = (x.transpose(1, 2).float() for x in (query, key, value))
        k, v = (x.repeat_interleave(repeat, 1) for x in (k, v))
        s = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).to(scores)
        if mask is not None:
            s = s + mask.to(scores)
        elif causal and s.shape[2] > 1:
            hidden = torch.ones(s.shape[2:], dtype=torch.bool, device=s.device).triu(1)
            s = s.masked_fill(hidden, float("-inf"))
        p = functional.softmax(s.float(), -1).to(shares).float()
        return (p @ v).to(query.dtype).transpose(1, 2).flatten(2)

    return mix


@contextmanager
def attending(mix: Callable[..., Tensor]) -> Iterator[None]:
    """Replace the language model's attention for a while."""
    with patch.object(SelfAttention, "mix", mix):
        yield


def ways(device: torch.device) -> dict[str, Callable[[], Any]]:
    """Return the ways of computing attention by name, each as a context."""
    coarse, fine = torch.bfloat16, torch.float32
    by_hand = {
        "attention in float32": lambda: attending(attention_in(fine, fine)),
        "shares in bfloat16": lambda: attending(attention_in(fine, coarse)),
        "scores, mask and shares in bfloat16": lambda: attending(attention_in(coarse, coarse)),
    }
    names = BACKENDS if device.type == "cuda" else {"math": SDPBackend.MATH}
    kernels = {
        f"kernel {name}": (lambda backend=backend: sdpa_kernel(backend))
        for name, backend in names.items()
    }
    return {"as torch chooses": nullcontext, **kernels, **by_hand}


def check(figures: Figures, fixture: Fixture, device: torch.device, draws: int = DRAWS) -> None:
    """Write the errors of every way, and what rounding does to tokens."""
    model = fixture.load(device, torch.bfloat16)
    truth_model = exact(model)
    pixels = fixture.pixels.bfloat16().float()
    truth = truth_of(truth_model, fixture, fixture.tokens, pixels)
    usual: float | None = None
    for name, how in ways(device).items():
        for together in (False, True):
            words = f"evaluate, {name}, {'padded' if together else 'single'}"
            try:
                with how():
                    rms, most = error(forced(model, pixels, fixture, together), truth)
            except RuntimeError as reason:  # a backend that takes no mask, or not this device
                print(f"  {words}: not here: {str(reason).splitlines()[0]}")
                continue
            usual = rms if usual is None else usual
            figures.row(f"{words}: RMS error", rms, "nats", usual, at_most=MOST * usual)
            figures.row(f"{words}: largest error", most, "nats")
    _rollouts(figures, fixture, model, truth_model, pixels)
    margins(figures, fixture, usual or 0.0)
    spread_of_tokens(figures, fixture, model, draws)


def _rollouts(
    figures: Figures, fixture: Fixture, model: OpenVLA, truth_model: OpenVLA, pixels: Tensor
) -> None:
    """Write the errors of whole rollouts; with a bucket, single prompts have pads as well."""
    single_rms = None
    for words, together, bucket in (
        ("single, no pads", False, 1),
        (f"single, pads to a multiple of {CUDA_BUCKET}", False, CUDA_BUCKET),
        (f"batch of unequal prompts, multiple of {CUDA_BUCKET}", True, CUDA_BUCKET),
        ("batch of unequal prompts", True, 1),
    ):
        runner = Runner(model)
        runner.bucket = bucket
        found = chosen(runner, pixels, fixture, together)
        rms, most = error(found, truth_of(truth_model, fixture, found.tokens, pixels))
        single_rms = rms if single_rms is None else single_rms
        figures.row(f"rollout, {words}: RMS error", rms, "nats", single_rms,
                    at_most=MOST * single_rms)  # fmt: skip
        figures.row(f"rollout, {words}: largest error", most, "nats")
        figures.row(f"rollout, {words}: tokens kept", _kept(found.tokens, fixture), "%")


def _kept(tokens: Tensor, fixture: Fixture) -> float:
    return 100 * float((tokens.cpu() == fixture.tokens).float().mean())


def margins(figures: Figures, fixture: Fixture, rms: float) -> None:
    """Write how close the fixture's two best logits are, against the error of one logit.

    Each of two logits has the error, so their difference has √2 of it; at most twice that is
    within reach of rounding.
    """
    best = fixture.logits.topk(2, dim=-1).values
    gap = best[..., 0] - best[..., 1]  # (B, D)
    near = gap < 2 * 2**0.5 * rms
    figures.row("fixture: smallest gap of the two best logits", float(gap.min()), "nats")
    figures.row("fixture: tokens within reach of rounding", 100 * float(near.float().mean()), "%")
    figures.row("fixture: rows with such a token", float(near.any(1).sum()), f"of {len(gap)}")
    after = near.cumsum(1).clamp(max=1).float().mean()
    figures.row("fixture: tokens at or after one, in their row", 100 * float(after), "%")


def spread_of_tokens(figures: Figures, fixture: Fixture, model: OpenVLA, draws: int) -> None:
    """Write the tokens kept by padded batches whose pixels differ by less than a rounding."""
    like, draw = model.projector.fc3.bias, torch.Generator().manual_seed(0)
    runner, steps = Runner(model), fixture.tokens.shape[1]
    kept = []
    for _ in range(draws):
        moved = 1 + HALF_STEP * (2 * torch.rand(fixture.pixels.shape, generator=draw) - 1)
        pixels = (fixture.pixels * moved).to(like)
        kept.append(_kept(runner.roll_out(pixels, fixture.prompts, steps).tokens, fixture))
    kept.sort()
    words = "tokens kept with pixels moved by less than a rounding"
    figures.row(f"{words}: least of {draws}", kept[0], "%")
    figures.row(f"{words}: median", kept[len(kept) // 2], "%")
    figures.row(f"{words}: most", kept[-1], "%")


def run(figures: Figures, options: Options) -> None:
    """Check on this device."""
    draws = 4 if options.tiny else DRAWS
    check(figures, Fixture(options.fixture), torch.device(options.device), draws)
