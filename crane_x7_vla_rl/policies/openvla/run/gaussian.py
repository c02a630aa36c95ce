"""OpenVLA-OFT's head as the mean of a Gaussian, so that a policy that regresses can be reinforced.

Pixels, prompts and measured joints → normalised actions with their log-probabilities. Each number
of a chunk is drawn on its own, around what the head says, with one fixed standard deviation. A
temperature divides the exponent, as it does a token's logits: at 0 the head's output itself.

Legend: B batch, T steps of a chunk, D action dimensions, H hidden size, P dimensions of the state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy.typing as npt
import torch
from torch import Tensor

from crane_x7_vla_rl.actions import find_statistics
from crane_x7_vla_rl.policies.openvla.model.oft_heads import ActionHead, ProprioProjector
from crane_x7_vla_rl.policies.openvla.model.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.run.oft import OpenVLAOft, instruction
from crane_x7_vla_rl.policies.openvla.run.oft_evaluate import evaluate_answer
from crane_x7_vla_rl.policies.openvla.run.rollout import Sampling
from crane_x7_vla_rl.policies.openvla.run.sequence import pack


@dataclass(frozen=True, eq=False)
class Sampled:
    """Chosen actions; on CUDA, still being computed."""

    tokens: Tensor
    """(B, T·D) float32, normalised actions, in the place of a token policy's ids."""
    log_probs: Tensor
    """(B, T·D) float32, logarithms of densities."""
    hidden: Tensor
    """(B, H), final hidden state at the prompt's end: for a value head."""


def deviation_at(deviation: float, temperature: float) -> float:
    """Return the standard deviation at a temperature."""
    return deviation * math.sqrt(temperature)


def log_density(actions: Tensor, mean: Tensor, deviation: float) -> Tensor:
    """Return the logarithms of densities, of the shape of both; raises ValueError for 0."""
    if not 0 < deviation < math.inf:
        raise ValueError(f"deviation is {deviation}, expected a positive number")
    away = (actions - mean) / deviation
    return -0.5 * away.square() - math.log(deviation) - 0.5 * math.log(2 * math.pi)


def entropy(deviation: float) -> float:
    """Return the differential entropy of one number, nats."""
    return 0.5 * math.log(2 * math.pi * math.e) + math.log(deviation)


class GaussianRunner:
    """Samples chunks of one policy, as `Runner` does tokens."""

    def __init__(self, policy: OpenVLAOft, unnorm_key: str, deviation: float) -> None:
        """`deviation`: of normalised actions at temperature 1. Raises StatisticsError."""
        self.policy, self.deviation = policy, deviation
        self._state = None
        if policy.proprio_dim:
            stats, bounds = policy.base.norm_stats, policy.settings.bounds
            self._state = find_statistics(stats, unnorm_key, "proprio", bounds=bounds)

    @property
    def model(self) -> OpenVLA:
        """The model below the head."""
        return self.policy.base

    def state(self, measured_rad: npt.ArrayLike) -> Tensor:
        """Return normalised states (B, P) on the CPU for measured joints (B, 8); P may be 0."""
        measured = torch.as_tensor(measured_rad)
        if self._state is None:
            return measured.new_zeros(len(measured), 0, dtype=torch.float32)
        return torch.from_numpy(self._state.normalise(measured.numpy())).float()

    @torch.no_grad()
    def encode(self, pixels: Tensor, input_ids: Sequence[Tensor]) -> Tensor:
        """Return patches (B, I·N, H) of pixels (B, 6·I, S, S) under their prompts."""
        base = self.policy.base
        prompts = pack(input_ids, base.config, 1, 1)
        ids, pads = prompts.ids.to(pixels.device), prompts.pads.to(pixels.device)
        told = instruction(base, ids, pads if prompts.padded else None)
        return base.encode(pixels, told=told)

    @torch.no_grad()
    def roll_out(
        self, images: Tensor, input_ids: Sequence[Tensor], state: Tensor, sampling: Sampling
    ) -> Sampled:
        """Return actions for pixels (B, 6·I, S, S) or patches, prompts and `state` (B, P).

        Raises ImageError and PromptError; on a CPU also NotFiniteError, elsewhere `on_host` does.
        """
        mean, hidden = self.policy.answer(images, input_ids, state)
        mean = mean.float().flatten(1)  # (B, T·D)
        deviation = deviation_at(self.deviation, sampling.temperature)
        if deviation == 0:
            return Sampled(mean, torch.zeros_like(mean), hidden)
        actions = mean + deviation * _noise(mean, sampling)
        return Sampled(actions, log_density(actions, mean, deviation), hidden)

    def on_host(self, actions: Tensor) -> Tensor:
        """Return actions (B, T·D) on the CPU; raises NotFiniteError, which names the weights."""
        return self.policy.on_host(actions)

    def forget(self) -> None:
        """Free all buffers and their memory."""
        self.policy.forget()


def _noise(like: Tensor, sampling: Sampling) -> Tensor:
    """Return standard normal noise (B, T·D), each row from its own generator if it has one."""
    noise = torch.empty_like(like)
    if not isinstance(sampling.generator, Sequence):
        return noise.normal_(generator=sampling.generator)
    for row, own in zip(noise, sampling.generator, strict=True):
        row.normal_(generator=own)
    return noise


@dataclass(frozen=True, eq=False)
class GaussianEvaluation:
    """Densities of given actions; carries gradients."""

    log_probs: Tensor
    """(B, T·D) float32."""
    entropy: Tensor
    """(B, T·D) float32, nats; the same everywhere."""
    hidden: Tensor
    """(B, H), see `Sampled`."""


def evaluate_gaussian(
    model: OpenVLA, heads: tuple[ActionHead, ProprioProjector | None], pixels: Tensor,
    instructions: Sequence[Tensor], state: Tensor, actions: Tensor, deviation: float,
) -> GaussianEvaluation:  # fmt: skip
    """Return the values for normalised `actions` (B, T·D), each `deviation` wide.

    See `oft_evaluate.evaluate_chunk` for the rest.
    """
    steps = actions.shape[1] // heads[0].action_dim
    found = evaluate_answer(model, heads, pixels, instructions, state, steps)
    mean = found.actions.flatten(1)
    log_probs = log_density(actions.to(mean), mean, deviation)
    return GaussianEvaluation(
        log_probs, torch.full_like(log_probs, entropy(deviation)), found.hidden
    )
