"""Decode over static buffers: one token after the other. First logits → tokens.

Every function may be captured: it uses only buffers, never waits, and may run several times.

Legend: B batch, D steps, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional

from crane_x7_vla_rl.actions import FIRST_ACTION_TOKEN
from crane_x7_vla_rl.policies.openvla.finite import marked
from crane_x7_vla_rl.policies.openvla.model.language import Pass
from crane_x7_vla_rl.policies.openvla.model.matrices import LayerMatrices
from crane_x7_vla_rl.policies.openvla.model.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.run.buffers import Answer, Buffers
from crane_x7_vla_rl.policies.openvla.run.inference import infer
from crane_x7_vla_rl.policies.openvla.run.sequence import Span, mask

Rotary = Callable[[Span, Tensor | None], tuple[Tensor, Tensor]]
"""A span and pads → cos and sin of its slots."""


class Decoder:
    """The passes of one model after the prefill."""

    def __init__(self, model: OpenVLA, weights: Sequence[LayerMatrices], rotary: Rotary) -> None:
        self._model, self._weights, self.rotary = model, list(weights), rotary
        self.like = model.projector.fc3.bias.detach()

    def logits(self, tokens: Tensor, this: Pass) -> Tensor:
        """Return (B, T, 256) float32 for action tokens (B, T)."""
        language = self._model.language_model.model
        x = language.embed_tokens(tokens)  # (B, T, H)
        return self._model.action_logits(infer(language, x, this, self._weights))

    def one_by_one(self, buffers: Buffers, answer: Answer) -> None:
        """Choose each token from a pass over the one before it."""
        pads = buffers.pads if answer.padded else None
        start, steps = answer.prompt.end, answer.steps
        after = Span(answer.prompt.prefix, start, start + steps)
        cos, sin = self.rotary(after, pads)
        window, seen = None, None
        if pads is not None:
            window = buffers.window(after.end)
            seen = mask(after, pads, self.like, window=window)
            buffers.cache.blank(start, window)
        for step in range(steps):
            if step:
                before = slice(step - 1, step)
                this = Pass(
                    cos=cos[:, before].contiguous(),
                    sin=sin[:, before].contiguous(),
                    mask=None if seen is None else seen[:, :, before],
                    cache=buffers.cache,
                    start=start + step - 1,
                    window=window,
                )
                buffers.logits[:, step] = self.logits(buffers.tokens[:, before], this)[:, 0]
            choose(buffers, slice(step, step + 1), answer.noisy)
        finish(buffers, steps)


def choose(buffers: Buffers, at: slice, noisy: bool) -> None:
    """Write the tokens that the logits of the steps `at` choose: argmax, with noise a sample."""
    scores = buffers.logits[:, at]  # (B, steps, 256)
    if noisy:
        scores = scores / buffers.temperature + buffers.noise[:, at]
    buffers.tokens[:, at] = scores.argmax(-1) + FIRST_ACTION_TOKEN


def finish(buffers: Buffers, steps: int) -> None:
    """Write the tokens' log-probabilities, and mark rows whose logits are not finite."""
    tokens, logits = buffers.tokens[:, :steps], buffers.logits[:, :steps]
    log_probs = functional.log_softmax(logits / buffers.temperature, -1)  # (B, D, 256)
    chosen = (tokens - FIRST_ACTION_TOKEN).clamp(min=0)  # (B, D); below 0 if marked already
    buffers.log_probs[:, :steps] = log_probs.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    buffers.tokens[:, :steps] = marked(tokens, logits)
