"""Rollouts of one model, prepared at first use and after changes. Images, prompts → `Rollout`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crane_x7_vla_rl.policies.openvla.model.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.run.low_bit import Kind
from crane_x7_vla_rl.policies.openvla.run.rollout import Engine, Rollout, Sampling


class Runner:
    """Rolls out one model; keeps its buffers and its last results between calls."""

    def __init__(
        self, model: OpenVLA, decode_weights: Kind | None = None, speculate: bool = False
    ) -> None:
        """`decode_weights`: decode small batches with int8 or fp8 weights, see `low_bit`.

        `speculate`: decode in fewer passes, see `speculation`; then `roll_out` waits for a GPU.
        """
        self.model, self._decode_weights = model, decode_weights
        self._speculate = speculate
        self.bucket: int | None = None
        """Unequal prompts are padded to a multiple of it; None: depends on the device."""
        self.remember = True
        """Whether images are compared with those of the call before, to reuse their results. The
        comparison waits for the device; without it, calls can be enqueued in advance."""
        self._engine: Engine | None = None

    @torch.no_grad()
    def roll_out(
        self,
        images: Tensor,
        input_ids: Sequence[Tensor],
        action_dim: int,
        sampling: Sampling | None = None,
    ) -> Rollout:
        """Return tokens with their log-probabilities, logits and the prompt's hidden state.

        `images` are pixels (B, 6·I, S, S) or patches (B, I·N, H) from `encode`; `input_ids`
        are B 1-D tensors of ids, BOS first, without the final 29871. Inputs that repeat those of
        the call before are not computed again. Raises ImageError and PromptError; on a CPU, which
        needs no wait, also NotFiniteError. On a GPU `OpenVLA.on_host` raises that.
        """
        if action_dim < 1:
            raise ValueError(f"action_dim is {action_dim}, expected 1 or more")
        chosen = self.engine()(images, input_ids, action_dim, sampling or Sampling())
        if not chosen.tokens.is_cuda:
            self.model.on_host(chosen.tokens)
        return chosen

    def on_host(self, tokens: Tensor) -> Tensor:
        """Return the tokens (B, D) on the CPU; raises NotFiniteError, see `OpenVLA.on_host`."""
        return self.model.on_host(tokens)

    def engine(self) -> Engine:
        """Return the engine of `roll_out`, a new one after modules or memory changed."""
        if self._engine is None or not self._engine.current():
            self._engine = None  # its memory goes first
            self._engine = Engine(self.model, self.bucket, self._decode_weights, self._speculate)
        self._engine.remember = self.remember
        self._engine.refresh()
        return self._engine

    def forget_draft(self) -> None:
        """Start the next speculation without the last action, as after a reset of the robot."""
        if self._engine is not None:
            self._engine.forget_draft()

    def forget(self) -> None:
        """Free all buffers and their memory; the next rollout allocates new ones."""
        self._engine = None
