"""The policy's predictions in a rollout. Pixels and prompts of a block's groups → tokens, values.

On CUDA, `ask` returns while the prediction is computed. Its copies to the CPU are enqueued directly
after it, so later predictions do not delay them, and `wait` waits only for them.

Legend: n environments of a block, D tokens of a prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crane_x7_vla_rl.policies import base
from crane_x7_vla_rl.policies.openvla.run.rollout import Rollout, Sampling
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
from crane_x7_vla_rl.training import non_finite
from crane_x7_vla_rl.training.errors import SpoiltError
from crane_x7_vla_rl.training.rl.agent import Agent
from crane_x7_vla_rl.types import Array


class Answer:
    """Tokens (n, D), log-probabilities (n, D) and values (n,) of one block."""

    def __init__(self, chosen: Rollout, values: Tensor) -> None:
        """Start the copies and return immediately."""
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


class Predictor:
    """Predicts during one rollout."""

    def __init__(self, agent: Agent, runner: Runner, number: int, valued: bool) -> None:
        """`number` of the update, from 0; without `valued`, all values are 0."""
        self._agent, self._runner, self._number, self._valued = agent, runner, number, valued

    def ask(
        self, step: int, seen: Tensor, prompts: Sequence[Tensor], length: int, how: Sampling
    ) -> Answer:
        """Start to predict `length` tokens and a value; see `Runner.roll_out`.

        Raises SpoiltError for logits that are NaN or infinite; on CUDA, `wait` raises it.
        """
        try:
            chosen = self._runner.roll_out(seen, prompts, length, how)
        except base.NotFiniteError as error:
            raise self._spoilt(step, error) from error
        values = chosen.log_probs.new_zeros(len(prompts))
        if self._valued:
            values = self._agent.value(chosen.hidden).float()
        return Answer(chosen, values)

    def wait(self, step: int, answer: Answer) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens, log-probabilities and values on the CPU; raises SpoiltError."""
        tokens, log_probs, values = answer.wait()
        try:
            self._runner.model.on_host(tokens)
        except base.NotFiniteError as error:
            raise self._spoilt(step, error) from error
        if not bool(torch.isfinite(values).all()):
            where = f"update {self._number + 1}: values of step {step} are NaN or infinite"
            raise non_finite.answer(where, self._agent.core)
        return tokens, log_probs, values

    def _spoilt(self, step: int, error: base.NotFiniteError) -> SpoiltError:
        where = f"update {self._number + 1}: log_probs of step {step} are NaN or infinite"
        return non_finite.answer(where, self._agent.core, error)


def _to_host(x: Tensor) -> Tensor:
    """Return a copy in pinned memory, still being written; on a CPU the tensor itself."""
    x = x.detach()
    if not x.is_cuda:
        return x
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
