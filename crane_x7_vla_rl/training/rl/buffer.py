"""What an update learns from, and how minibatches are sampled from it.

Tensors of T steps and N environments → flat samples, checked. Sample t·N + n is step t of
environment n of this process; of all processes together it is t·E + e, where the first one's
environments are the first N of E.

Legend: T steps of a rollout, N environments of this process, E of all, D tokens of a prediction,
S pixels of a side, H the policy's hidden size, B samples, C numbers that a critic sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crane_x7_vla_rl.policies.openvla import OpenVLA
from crane_x7_vla_rl.training.errors import PpoError


@dataclass(frozen=True, eq=False)
class Buffer:
    """One rollout of this process."""

    images: Tensor
    """(T, N, S, S, 3) uint8 of the model's size, as it was shown to the policy; or pixels
    (T, N, 6·I, S, S), or patches (T, N, I·patches, H) where vision does not learn, or the
    hidden states (T, N, D, H) that OpenVLA-OFT's head read, where it alone learns."""
    prompts: Sequence[Sequence[Tensor]]
    """T times N 1-D tensors of ids, measured joints included."""
    tokens: Tensor
    """(T, N, D) int64; of OpenVLA-OFT's head normalised actions, float32."""
    log_probs: Tensor
    """(T, N, D) float32, from the rollout, at the temperature of the configuration."""
    advantages: Tensor
    """(T, N), from `gae` or `group_advantages`, not normalised."""
    valid: Tensor
    """(T, N) bool; False for discarded steps."""
    values: Tensor
    """(T, N), from the value head in the rollout; zeros without one."""
    returns: Tensor
    """(T, N); zeros without a value head."""
    action_mask: Tensor | None = None
    """(T, N, D) bool: tokens of executed steps; None for all."""
    seen: Tensor | None = None
    """(T, N, C), what a separate critic saw; None for the value head, which sees the policy's
    hidden state."""
    state: Tensor | None = None
    """(T, N, P) normalised joints, read by a policy with OpenVLA-OFT's head; None for tokens."""

    def __post_init__(self) -> None:
        steps, environments = self.advantages.shape
        wanted = {"advantages": 2, "valid": 2, "values": 2, "returns": 2} | {"log_probs": 3}
        for name, dimensions in wanted.items():
            found = getattr(self, name).shape
            if found[:2] != (steps, environments) or len(found) != dimensions:
                raise PpoError(
                    f"rollout: {name} is {tuple(found)}, expected {(steps, environments)}"
                )
        for name in ("tokens", "action_mask"):
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape != self.log_probs.shape:
                shapes = tuple(tensor.shape), tuple(self.log_probs.shape)
                raise PpoError(f"rollout: {name} is {shapes[0]}, expected {shapes[1]} as log_probs")
        if self.seen is not None and self.seen.shape[:2] != (steps, environments):
            raise PpoError(
                f"rollout: seen is {tuple(self.seen.shape)}, expected {(steps, environments)} first"
            )
        lengths = [len(row) for row in self.prompts]
        if self.images.shape[:2] != (steps, environments) or lengths != [environments] * steps:
            raise PpoError(
                f"rollout: images are {tuple(self.images.shape)} and prompts {len(lengths)} times"
                f" {sorted(set(lengths))}, expected {steps} times {environments}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """T and N."""
        return self.advantages.shape[0], self.advantages.shape[1]

    def pixels(self, policy: OpenVLA, samples: Tensor) -> Tensor:
        """Return what the policy sees of flat samples (B,): pixels or patches, on its device."""
        chosen = self.images.flatten(0, 1)[samples.to(self.images.device)]  # (B, …)
        if chosen.dtype == torch.uint8:
            return policy.normalise(chosen)
        like = policy.projector.fc3.bias
        return chosen.to(like.device, like.dtype)

    def seen_by_critic(self, samples: Tensor, device: torch.device) -> Tensor | None:
        """Return what a separate critic saw of flat samples (B,): (B, C); None without one."""
        if self.seen is None:
            return None
        return self.seen.flatten(0, 1)[samples.to(self.seen.device)].to(device)

    def states_of(self, samples: Tensor, device: torch.device) -> Tensor | None:
        """Return normalised joints of flat samples (B,): (B, P); None for a policy of tokens."""
        if self.state is None:
            return None
        return self.state.flatten(0, 1)[samples.to(self.state.device)].to(device)

    def prompts_of(self, samples: Tensor) -> list[Tensor]:
        """Return the prompts of flat samples (B,)."""
        environments = self.shape[1]
        places = (divmod(sample, environments) for sample in samples.tolist())
        return [self.prompts[step][environment] for step, environment in places]

    def first_non_finite(self) -> str:
        """Name the first figure of a valid step that is NaN or infinite; empty if none."""
        for name in ("log_probs", "advantages", "values", "returns"):
            tensor = getattr(self, name)
            wrong = ~torch.isfinite(tensor)
            if wrong.ndim == 3:
                wrong = wrong.any(-1)
            found = (wrong & self.valid).nonzero()
            if len(found):
                step, environment = found[0].tolist()
                return f"{name} of step {step} in environment {environment}"
        return ""


def derive_seed(*numbers: int) -> int:
    """Return a seed of 63 bits that differs for any other numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def shuffled(steps: int, environments: int, generator: torch.Generator) -> Tensor:
    """Return (T·E,) flat samples of all processes in random order.

    Any E in a row from a multiple of E are of E environments, so that each process has about as
    much to do as every other in each minibatch, and each minibatch sees all environments.
    """
    times = torch.rand(environments, steps, generator=generator).argsort(1)  # (E, T)
    rows = torch.rand(steps, environments, generator=generator).argsort(1)  # (T, E)
    return (times.T.gather(1, rows) * environments + rows).flatten()
