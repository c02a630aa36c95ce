"""Every path of inference and training against the fixture and float64. Device → figures.

Token counts have a target in float32 alone: in bfloat16 they are no measure, see `padding`.

Legend: B samples, D action tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from sft_bench.figures import Figures
from torch import Tensor

from crane_x7_vla_rl.policies.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.run.evaluate import evaluate
from crane_x7_vla_rl.policies.openvla.run.low_bit import Kind
from crane_x7_vla_rl.policies.openvla.run.low_bit_error import compare
from crane_x7_vla_rl.policies.openvla.run.rollout import Rollout, Sampling
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
from crane_x7_vla_rl.policies.openvla.weights.lora import LoraSettings, add_lora
from gpu_check import chunks
from gpu_check.fixture import Fixture, exact
from gpu_check.parts import Options

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LIMITS: Final = {
    "float32": {"logits": 2e-4, "log-probabilities": 1e-4, "gradients": 1e-4, "vision": 1e-5},
    "bfloat16": {"logits": 3.0, "log-probabilities": 0.5, "gradients": 0.15, "vision": 0.1},
}
"""Largest difference of logits and of log-probabilities in nats, of gradients and of vision as a
share; bfloat16 has them against the fixture, whose weights are float32."""
PIXELS: Final = 1e-6
SAMPLES: Final = 400
KINDS: Final[tuple[Kind, ...]] = ("int8", "fp8")

SPECULATE: Final = "speculate"
"""The argument of `Runner` that turns speculative decode on."""


def kept(rollout: Rollout, wanted: Tensor) -> float:
    """Return the tokens that equal `wanted` (B, D), in %."""
    return 100 * float((rollout.tokens.cpu() == wanted).float().mean())


def logit_error(rollout: Rollout, tokens: Tensor, logits: Tensor) -> float:
    """Return the largest difference from logits (B, D, 256) at equal prefixes."""
    same = (rollout.tokens.cpu() == tokens).long().cumprod(1)
    before = torch.cat([torch.ones_like(same[:, :1]), same[:, :-1]], 1).bool()  # (B, D)
    return float((rollout.logits.cpu() - logits).abs()[before].max())


def paths(runner: Runner, fixture: Fixture) -> dict[str, tuple[Callable[[], Rollout], slice]]:
    """Return each path of a rollout by name, with the rows that it answers."""
    like, steps = runner.model.projector.fc3.bias, fixture.tokens.shape[1]
    pixels, prompts, every = fixture.pixels.to(like), fixture.prompts, slice(0, fixture.count)

    def ask(rows: slice, images: Tensor | None = None) -> Rollout:
        shown = pixels if images is None else images
        return runner.roll_out(shown[rows], prompts[rows], steps)

    def after(rows: slice, other: Callable[[], object]) -> Rollout:
        other()
        return ask(rows)

    one = slice(0, 1)
    encoded = torch.no_grad()(partial(runner.model.encode, pixels))
    another_prompt = lambda: runner.roll_out(pixels[one], prompts[1:2], steps)  # noqa: E731
    another_image = lambda: runner.roll_out(pixels[1:2], prompts[one], steps)  # noqa: E731
    single = {
        f"prompt {row} alone": (partial(ask, slice(row, row + 1)), slice(row, row + 1))
        for row in range(fixture.count)
    }
    return {
        **single,
        "again, image and prompt kept": (partial(after, one, partial(ask, one)), one),
        "image kept, after another prompt": (partial(after, one, another_prompt), one),
        "after another image": (partial(after, one, another_image), one),
        "a batch of unequal prompts": (partial(ask, every), every),
        "the batch again, kept": (partial(after, every, partial(ask, every)), every),
        "from patches": (lambda: ask(every, encoded()), every),
    }


def rollouts(figures: Figures, fixture: Fixture, model: OpenVLA, name: str) -> None:
    """Write tokens and logits of every path."""
    runner, limits = Runner(model), LIMITS[name]
    wanted = 100.0 if name == "float32" else None
    for path, (run, rows) in paths(runner, fixture).items():
        found, tokens = run(), fixture.tokens[rows]
        figures.row(f"{name}, {path}: tokens kept", kept(found, tokens), "%", at_least=wanted)
        error = logit_error(found, tokens, fixture.logits[rows])
        figures.row(f"{name}, {path}: logits", error, "nats", at_most=limits["logits"])
    like = model.projector.fc3.bias
    chosen = runner.roll_out(fixture.pixels.to(like), fixture.prompts, fixture.tokens.shape[1])
    with torch.no_grad():
        again = evaluate(model, fixture.pixels.to(like), fixture.prompts, chosen.tokens)
    difference = float((again.log_probs - chosen.log_probs).abs().max())
    figures.row(f"{name}, rollout against evaluate", difference, "nats",
                at_most=limits["log-probabilities"])  # fmt: skip


def vision(figures: Figures, fixture: Fixture, model: OpenVLA, name: str) -> None:
    """Write the differences of pixels and patches."""
    if name == "float32":
        pixels = model.preprocess(fixture.images()).cpu()
        difference = float((pixels - fixture.pixels).abs().max())
        figures.row(f"{name}, pixels, resized on the device", difference, "", at_most=PIXELS)
    with torch.no_grad():
        found = model.encode(fixture.pixels.to(model.projector.fc3.bias)).cpu().float()
    expected = fixture.expected["projected"]
    share = float((found - expected).abs().max() / expected.abs().max())
    figures.row(f"{name}, vision and projector", share, "of the largest",
                at_most=LIMITS[name]["vision"])  # fmt: skip


def gradients(figures: Figures, fixture: Fixture, model: OpenVLA, name: str) -> None:
    """Write the difference of LoRA's gradients from those in float64, padded and recomputed."""
    torch.manual_seed(0)
    add_lora(model, LoraSettings(rank=4, alpha=8.0))
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.02)
    truth = _gradient(exact(model), fixture, torch.device("cpu"))
    device = model.projector.fc3.bias.device
    for words, recompute in (("", False), (", recomputed", True)):
        model.checkpoint_gradients(recompute)
        model.zero_grad(set_to_none=True)
        found = _gradient(model.train(), fixture, device)
        share = float((found - truth).norm() / truth.norm())
        figures.row(f"{name}, gradients of adapters{words}", share, "of their norm",
                    at_most=LIMITS[name]["gradients"])  # fmt: skip


def _gradient(model: OpenVLA, fixture: Fixture, device: torch.device) -> Tensor:
    """Return all gradients of the summed log-probabilities, (n,) float64."""
    pixels = fixture.pixels.to(model.projector.fc3.bias)
    tokens = fixture.tokens.to(device)
    evaluate(model, pixels, fixture.prompts, tokens).log_probs.sum().backward()
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(found).cpu().double()


def sampling(figures: Figures, fixture: Fixture, model: OpenVLA) -> None:
    """Write how far the shares of sampled first tokens are from the softmax, as total variation."""
    like, runner = model.projector.fc3.bias, Runner(model)
    pixels = fixture.pixels[:1].to(like).expand(SAMPLES, -1, -1, -1)
    generator = torch.Generator(like.device).manual_seed(0)
    prompts = fixture.prompts[:1] * SAMPLES
    found = runner.roll_out(pixels, prompts, 1, Sampling(2.0, generator))
    shares = torch.bincount(found.tokens[:, 0].cpu() - 31744, minlength=256) / SAMPLES
    wanted = (found.logits[0, 0].cpu() / 2.0).softmax(-1)
    distance = 0.5 * float((shares - wanted).abs().sum())
    expected = float((2 / torch.pi * wanted * (1 - wanted) / SAMPLES).sqrt().sum() / 2)
    figures.row("sampled tokens against the softmax", distance, "total variation",
                at_most=2 * expected + 0.02)  # fmt: skip


def low_bit(figures: Figures, fixture: Fixture, model: OpenVLA, name: str) -> None:
    """Write what 8-bit decode changes."""
    pixels = fixture.pixels.to(model.projector.fc3.bias)
    for kind in KINDS:
        found = compare(model, kind, pixels, fixture.prompts, fixture.tokens.shape[1])
        figures.row(f"{name}, {kind} decode: tokens kept", 100 * found.same_tokens, "%")
        figures.row(f"{name}, {kind} decode: log-probabilities", found.log_prob, "nats")


def speculation(figures: Figures, fixture: Fixture, model: OpenVLA, name: str) -> None:
    """Write how many tokens speculative decode shares with decoding one by one, if it exists."""
    if SPECULATE not in inspect.signature(Runner).parameters:
        return
    pixels, steps = fixture.pixels.to(model.projector.fc3.bias), fixture.tokens.shape[1]
    runner, wanted = Runner(model, **{SPECULATE: True}), 100.0 if name == "float32" else None
    for words in ("first", "with the last action as draft"):
        found = runner.roll_out(pixels[:1], fixture.prompts[:1], steps)
        plain = Runner(model).roll_out(pixels[:1], fixture.prompts[:1], steps)
        figures.row(f"{name}, speculation, {words}: tokens kept", kept(found, plain.tokens.cpu()),
                    "%", at_least=wanted)  # fmt: skip


def run(figures: Figures, options: Options) -> None:
    """Compare everything, in float32 and in bfloat16."""
    device, fixture = torch.device(options.device), Fixture(options.fixture)
    for name, dtype in DTYPES.items():
        model = fixture.load(device, dtype)
        vision(figures, fixture, model, name)
        rollouts(figures, fixture, model, name)
        low_bit(figures, fixture, model, name)
        speculation(figures, fixture, model, name)
        chunks.run(figures, fixture, model, name)
        if name == "float32" and not options.tiny:
            sampling(figures, fixture, model)
        gradients(figures, fixture, model, name)
