"""The policy's predictions in a rollout. Pixels and prompts of a block's groups → tokens, values.

On CUDA, `ask` returns while the prediction is computed. Its copies to the CPU are enqueued directly
after it, so later predictions do not delay them, and `wait` waits only for them.

Legend: n environments of a block, D tokens of a prediction, C numbers that a critic sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from crane_x7_vla_rl.policies import base
from crane_x7_vla_rl.policies.openvla.run.gaussian import GaussianRunner, Sampled
from crane_x7_vla_rl.policies.openvla.run.rollout import Rollout, Sampling
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
from crane_x7_vla_rl.training import non_finite
from crane_x7_vla_rl.training.errors import PpoError, SpoiltError
from crane_x7_vla_rl.training.rl import critics
from crane_x7_vla_rl.training.rl.agent import Agent
from crane_x7_vla_rl.training.rl.ppo_config import PpoConfig
from crane_x7_vla_rl.types import Array

VALUED: Final = Sampling()
"""Sampling of the one token that is discarded, where only a value is needed."""


class Answer:
    """Tokens (n, D), log-probabilities (n, D) and values (n,) of one block."""

    def __init__(
        self, chosen: Rollout | Sampled, values: Tensor, seen: Tensor | None = None
    ) -> None:
        """Start the copies and return immediately."""
        self.seen = seen
        """(n, C), what a separate critic saw, on the device; None for the value head."""
        self.read = chosen.read if isinstance(chosen, Sampled) else None
        """(n, D, H), what OpenVLA-OFT's head read, on the device; None for a policy of tokens."""
        self._copies = tuple(_to_host(x) for x in (chosen.tokens, chosen.log_probs, values))
        self._copied: torch.cuda.Event | None = None
        if chosen.tokens.is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def wait(self) -> tuple[Tensor, Tensor, Tensor]:
        """Wait for the copies and return them."""
        if self._copied is not None:
            self._copied.synchronize()
        tokens, log_probs, values = self._copies
        return tokens, log_probs, values


@dataclass(frozen=True, eq=False)
class Decision:
    """A prediction for one block, whose actions are not sent yet."""

    step: int
    block: range
    """Numbers of its groups."""
    measured: Array
    """(n, 8) rad."""
    answer: Answer


@dataclass(frozen=True, eq=False)
class Beside:
    """What a critic may see of a block beside the image and the prompt."""

    measured: Array
    """(n, 8) rad."""
    true_state: Tensor | None
    """(n, S), see `sim.vector.true_state`; None where the simulator does not tell."""


class Predictor:
    """Predicts during one rollout."""

    def __init__(
        self, agent: Agent, runner: Runner | GaussianRunner, number: int, config: PpoConfig
    ) -> None:
        """`number` of the update, from 0; grpo has no values, so all of them are 0."""
        self._agent, self._runner, self._number = agent, runner, number
        self._valued, self._critic = config.algorithm == "ppo", config.value.critic

    @torch.no_grad()
    def ask(
        self, step: int, seen: Tensor, prompts: Sequence[Tensor], length: int, how: Sampling,
        beside: Beside,
    ) -> Answer:  # fmt: skip
        """Start to predict `length` tokens and a value; see `Runner.roll_out`.

        `beside` is for a critic alone: no token depends on its true state. Raises SpoiltError for
        logits that are NaN or infinite; on CUDA, `wait` raises it.
        """
        if self._valued and self._critic == "own" and seen.ndim == 4:
            seen = self._runner.model.encode(seen)
        try:
            chosen = self._choose(seen, prompts, length, how, beside)
        except base.NotFiniteError as error:
            raise self._spoilt(step, error) from error
        values = chosen.log_probs.new_zeros(len(prompts))
        view: Tensor | None = None
        if self._valued:
            view = self._view(seen, chosen.hidden, beside)
            values = self._agent.value(chosen.hidden if view is None else view).float()
        return Answer(chosen, values, view)

    def _choose(
        self, seen: Tensor, prompts: Sequence[Tensor], length: int, how: Sampling, beside: Beside
    ) -> Rollout | Sampled:
        if isinstance(self._runner, GaussianRunner):
            state = self._runner.state(beside.measured)
            return self._runner.roll_out(seen, prompts, state, how)
        return self._runner.roll_out(seen, prompts, length, how)

    def _view(self, patches: Tensor, hidden: Tensor, beside: Beside) -> Tensor | None:
        """Return (n, C), what the critic sees; None for the value head."""
        if self._critic == "state":
            return _told(beside.true_state)
        if self._critic == "own":
            return critics.own_view(patches, hidden, torch.from_numpy(beside.measured))
        return None

    def value(self, step: int, seen: Tensor, prompts: Sequence[Tensor], beside: Beside) -> Tensor:
        """Return (n,) values alone, on the CPU; the policy is needed only where the critic is."""
        if self._critic == "state":
            return self._finite(step, self._agent.value(_told(beside.true_state)).cpu())
        return self.wait(step, self.ask(step, seen, prompts, 1, VALUED, beside))[2]

    def wait(self, step: int, answer: Answer) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens, log-probabilities and values on the CPU; raises SpoiltError."""
        tokens, log_probs, values = answer.wait()
        try:
            self._runner.on_host(tokens)
        except base.NotFiniteError as error:
            raise self._spoilt(step, error) from error
        return tokens, log_probs, self._finite(step, values)

    def _finite(self, step: int, values: Tensor) -> Tensor:
        if not bool(torch.isfinite(values).all()):
            where = f"update {self._number + 1}: values of step {step} are NaN or infinite"
            raise non_finite.answer(where, self._agent.core)
        return values

    def _spoilt(self, step: int, error: base.NotFiniteError) -> SpoiltError:
        where = f"update {self._number + 1}: log_probs of step {step} are NaN or infinite"
        return non_finite.answer(where, self._agent.core, error)


def _told(true_state: Tensor | None) -> Tensor:
    if true_state is None:
        raise PpoError(
            "ppo.value.critic is state, but the environments tell no true state; create them with"
            " VectorConfig.true_state"
        )
    return true_state


def _to_host(x: Tensor) -> Tensor:
    """Return a copy in pinned memory, still being written; on a CPU the tensor itself."""
    x = x.detach()
    if not x.is_cuda:
        return x
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
