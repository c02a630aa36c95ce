"""The chunk that OpenVLA-OFT's head predicts, with gradients, for training.

Pixels, prompts and normalised states → normalised actions. The sequence is that of `oft`; here the
modules compute it, so that adapters apply and gradients flow.

Legend: B batch, T steps of a chunk, D action dimensions, H hidden size, P dimensions of the state,
S pixels of a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from crane_x7_vla_rl.policies.openvla.model.language import Pass, rotary_table
from crane_x7_vla_rl.policies.openvla.model.oft_heads import ActionHead, ProprioProjector
from crane_x7_vla_rl.policies.openvla.model.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.run.device import launching_on
from crane_x7_vla_rl.policies.openvla.run.oft import embeddings, instruction
from crane_x7_vla_rl.policies.openvla.run.sequence import Span, mask, pack, positions


class Answer(NamedTuple):
    """What the model says of a batch."""

    actions: Tensor
    """(B, T, D) float32, normalised."""
    hidden: Tensor
    """(B, H), final hidden state at the prompt's end."""


def evaluate_chunk(
    model: OpenVLA, heads: tuple[ActionHead, ProprioProjector | None], pixels: Tensor,
    instructions: Sequence[Tensor], state: Tensor, steps: int,
) -> Tensor:  # fmt: skip
    """Return the actions of `evaluate_answer` alone."""
    return evaluate_answer(model, heads, pixels, instructions, state, steps).actions


def evaluate_answer(
    model: OpenVLA, heads: tuple[ActionHead, ProprioProjector | None], pixels: Tensor,
    instructions: Sequence[Tensor], state: Tensor, steps: int,
) -> Answer:  # fmt: skip
    """Return the answer for pixels (B, 6·I, S, S) and states (B, P), both normalised.

    In place of pixels, patches (B, I·N, H) that `encode` has made of them, for these instructions.
    `instructions` are B 1-D tensors of prompt ids, `steps` is T. Raises PromptError, ImageError.
    """
    head, proprio = heads
    like = model.projector.fc3.bias
    placeholders = steps * head.action_dim
    prefix = 1 + model.count_patches(pixels, len(instructions)) + (proprio is not None)
    prompts = pack(instructions, model.config, prefix, placeholders + 1)
    ids = prompts.ids.to(like.device)
    pads = prompts.pads.to(like.device) if prompts.padded else None
    told = instruction(model, ids, pads)
    patches = pixels.to(like)
    if pixels.ndim == 4:
        patches = model.encode(patches, told=told)
    token = None if proprio is None else proprio(state.to(proprio.fc1.bias)).to(patches)
    x = embeddings(model, patches, token, ids, placeholders)
    span = Span(prefix, 0, x.shape[1])
    at = positions(span, pads, x.device)  # (B or 1, span)
    cos, sin = rotary_table(model.config.text, x.shape[1], like)
    seen = None if pads is None else mask(span, pads, x, causal=False)
    keep = placeholders + 2
    this = Pass(
        cos=cos[at].unsqueeze(2),
        sin=sin[at].unsqueeze(2),
        mask=seen,
        causal=False,
        keep=keep,
        keep_mask=None if seen is None else seen[:, :, -keep:],
    )
    with launching_on(x):
        hidden = model.language_model.model(x, this)  # (B, keep, H)
    return Answer(head(hidden[:, :placeholders].float()), hidden[:, 0])
