"""OpenVLA-OFT's head as the mean of a Gaussian, so that a policy that regresses can be reinforced.

Pixels, prompts and measured joints → normalised actions with their log-probabilities. Each number
of a chunk is drawn around what the head says, with one fixed standard deviation. From step to step
its noise may be correlated (`Noise`): an arm hardly follows white noise, so tries would resemble
each other. A temperature divides the exponent, as it does a token's logits: at 0 the head's output
itself.

Legend: B batch, T steps of a chunk, D action dimensions, H hidden size, P dimensions of the state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy.typing as npt
import torch
from torch import Tensor, nn

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
    read: Tensor
    """(B, T·D, H), final hidden states that the head read."""

    @property
    def hidden(self) -> Tensor:
        """(B, H), the one at the prompt's end: for a value head."""
        return self.read[:, 0]


@dataclass(frozen=True)
class Noise:
    """How the actions of a chunk scatter: one stationary AR(1) process per dimension.

    Chunks are independent of each other. The correlation changes no step's deviation.
    """

    deviation: float
    """Standard deviation of each number; 0: nothing is drawn."""
    correlation: float = 0.0
    """Of a step's noise with that of the step before, 0 (white) to below 1."""

    def at(self, temperature: float) -> Noise:
        """Return the noise at a temperature."""
        return replace(self, deviation=self.deviation * math.sqrt(temperature))

    def _widths(self, like: Tensor) -> Tensor:
        """Return (T, 1), the deviation of each step once the step before is known."""
        later = self.deviation * math.sqrt(1 - self.correlation**2)
        widths = like.new_full((like.shape[1], 1), later)
        widths[0] = self.deviation
        return widths

    def of(self, white: Tensor) -> Tensor:
        """Return noise (B, T, D) made from standard normal numbers (B, T, D)."""
        steps = list((white * self._widths(white)).unbind(1))
        for index in range(1, len(steps)):
            steps[index] = steps[index] + self.correlation * steps[index - 1]
        return torch.stack(steps, 1)

    def log_density(self, actions: Tensor, mean: Tensor) -> Tensor:
        """Return each number's logarithm of density, given the steps before, all (B, T, D).

        Raises ValueError where nothing is drawn.
        """
        if not 0 < self.deviation < math.inf or not 0 <= self.correlation < 1:
            raise ValueError(
                f"deviation is {self.deviation} and correlation {self.correlation}, expected a"
                " positive number and 0 to below 1"
            )
        noise, widths = actions - mean, self._widths(mean)
        before = nn.functional.pad(noise[:, :-1], (0, 0, 1, 0))
        new = (noise - self.correlation * before) / widths
        return -0.5 * new.square() - widths.log() - 0.5 * math.log(2 * math.pi)

    def entropy(self, like: Tensor) -> Tensor:
        """Return the differential entropy of each number (B, T, D), nats, given those before."""
        each = 0.5 * math.log(2 * math.pi * math.e) + self._widths(like).log()
        return each.expand_as(like)


class GaussianRunner:
    """Samples chunks of one policy, as `Runner` does tokens."""

    def __init__(self, policy: OpenVLAOft, unnorm_key: str, noise: Noise) -> None:
        """`noise`: of normalised actions at temperature 1. Raises StatisticsError."""
        self.policy, self.noise = policy, noise
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
        mean, read = self.policy.answer(images, input_ids, state)
        mean = mean.float()  # (B, T, D)
        noise = self.noise.at(sampling.temperature)
        if noise.deviation == 0:
            return Sampled(mean.flatten(1), torch.zeros_like(mean).flatten(1), read)
        actions = mean + noise.of(_white(mean, sampling))
        log_probs = noise.log_density(actions, mean)
        return Sampled(actions.flatten(1), log_probs.flatten(1), read)

    def on_host(self, actions: Tensor) -> Tensor:
        """Return actions (B, T·D) on the CPU; raises NotFiniteError, which names the weights."""
        return self.policy.on_host(actions)

    def forget(self) -> None:
        """Free all buffers and their memory."""
        self.policy.forget()


def _white(like: Tensor, sampling: Sampling) -> Tensor:
    """Return standard normal numbers (B, T, D), each row from its own generator if it has one."""
    white = torch.empty_like(like)
    if not isinstance(sampling.generator, Sequence):
        return white.normal_(generator=sampling.generator)
    for row, own in zip(white, sampling.generator, strict=True):
        row.normal_(generator=own)
    return white


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
    instructions: Sequence[Tensor], state: Tensor, actions: Tensor, noise: Noise,
) -> GaussianEvaluation:  # fmt: skip
    """Return the values for normalised `actions` (B, T·D), drawn with `noise`.

    See `oft_evaluate.evaluate_chunk` for the rest.
    """
    steps = actions.shape[1] // heads[0].action_dim
    found = evaluate_answer(model, heads, pixels, instructions, state, steps)
    return _evaluation(found.actions, found.hidden, actions, noise)


def evaluate_head(
    head: ActionHead, read: Tensor, actions: Tensor, noise: Noise
) -> GaussianEvaluation:
    """Return the same from the hidden states (B, T·D, H) that the head read in a rollout.

    The model below it computes nothing, so that only the head learns.
    """
    return _evaluation(head(read.float()), read[:, 0], actions, noise)


def _evaluation(mean: Tensor, hidden: Tensor, actions: Tensor, noise: Noise) -> GaussianEvaluation:
    """Return the values of actions (B, T·D) around the head's output (B, T, D)."""
    log_probs = noise.log_density(actions.to(mean).view(mean.shape), mean)
    entropy = noise.entropy(log_probs)
    return GaussianEvaluation(log_probs.flatten(1), entropy.flatten(1), hidden)
