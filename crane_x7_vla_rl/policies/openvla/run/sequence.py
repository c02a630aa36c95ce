"""The position of each token of a batch: `[BOS] [image tokens] [pads] [text] [29871] [action]`.

Prompts of unequal length, as lists of ids → ids, slots, positions and masks for the language model.
Pads are between image and text, so that every row's prompt ends at the same slot and slots are
known without reading the data, as a captured graph needs it. Pads are masked, and a token's
position counts only tokens that are not pads.

Legend: B batch, L text slots (pads, text and 29871; without BOS), P prefix slots (BOS and image),
T positions of a pass, S slots that it may see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crane_x7_vla_rl.actions import ACTION_BINS, FIRST_ACTION_TOKEN
from crane_x7_vla_rl.policies.openvla.errors import ActionTokenError, PromptError
from crane_x7_vla_rl.policies.openvla.model.config import OpenVLAConfig
from crane_x7_vla_rl.prompt import BOS_TOKEN, PROMPT_END_TOKEN


@dataclass(frozen=True, eq=False)
class Prompts:
    """Text of a batch, right-aligned."""

    ids: Tensor
    """(B, L) int64; pads hold 0 and are masked."""
    pads: Tensor
    """(B,) int64, pads before each row's text."""
    padded: bool
    """Whether any row has a pad."""

    @property
    def length(self) -> int:
        """L."""
        return self.ids.shape[1]


@dataclass(frozen=True)
class Span:
    """The slots of one pass over a batch with the layout above."""

    prefix: int
    """P, the first slot of pads."""
    start: int
    end: int


def pack(
    input_ids: Sequence[Tensor], config: OpenVLAConfig, prefix: int, steps: int, bucket: int = 1
) -> Prompts:
    """Return the prompts on the CPU; 29871 is appended to each that does not end with it.

    `input_ids` holds one 1-D tensor of ids per sample, BOS first. `prefix` slots are before the
    text and `steps` after it. Prompts of one length get no pads, so that attention needs no mask.
    Of unequal ones L is rounded up, as far as the context allows, so that they end at a multiple of
    `bucket`. Raises PromptError for a batch or prompt that does not fit.
    """
    if not len(input_ids):
        raise PromptError("got no prompt, expected one per image")
    texts = [_text(ids, row, config) for row, ids in enumerate(input_ids)]
    longest = max(len(text) for text in texts)
    room = config.context - prefix - steps
    if longest > room:
        row = max(range(len(texts)), key=lambda index: len(texts[index]))
        raise PromptError(
            f"prompt {row} has {longest} tokens; with {prefix} for BOS and image and {steps} for"
            f" the action, {longest + prefix + steps} are more than the context of"
            f" {config.context}: shorten the instruction by {longest - room} tokens"
        )
    length = longest
    if min(map(len, texts)) < longest:
        length = min(-(-(prefix + longest) // bucket) * bucket - prefix, room)
    packed = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, text in enumerate(texts):
        packed[row, length - len(text) :] = text
    pads = torch.tensor([length - len(text) for text in texts])
    return Prompts(packed, pads, bool(pads.any()))


def _text(ids: Tensor, row: int, config: OpenVLAConfig) -> Tensor:
    """Return the ids after BOS, 29871 last."""
    found = torch.as_tensor(ids).detach().cpu()
    if found.ndim != 1 or found.is_floating_point() or not len(found):
        raise PromptError(
            f"prompt {row} is {tuple(found.shape)} of {found.dtype}, expected a 1-D tensor of ids"
        )
    if int(found[0]) != BOS_TOKEN:
        raise PromptError(
            f"prompt {row} begins with id {int(found[0])}, expected {BOS_TOKEN} (BOS)"
        )
    low, high = int(found.min()), int(found.max())
    if low < 0 or high >= config.text.vocab_size:
        raise PromptError(
            f"prompt {row} holds ids {low} to {high}, expected 0 to {config.text.vocab_size - 1}:"
            " is this the checkpoint's own tokenizer?"
        )
    text = found[1:].to(torch.int64)
    if len(text) and int(text[-1]) == PROMPT_END_TOKEN:
        return text
    return torch.cat([text, torch.tensor([PROMPT_END_TOKEN])])


def check_actions(tokens: Tensor, batch: int) -> Tensor:
    """Return action tokens (B, D) as int64; raises ActionTokenError for anything else."""
    if tokens.ndim != 2 or tokens.shape[0] != batch or not tokens.shape[1]:
        raise ActionTokenError(
            f"action tokens have shape {tuple(tokens.shape)}, expected ({batch}, dimensions)"
        )
    tokens = tokens.to(torch.int64)
    low, high = int(tokens.min()), int(tokens.max())
    if low < FIRST_ACTION_TOKEN or high >= FIRST_ACTION_TOKEN + ACTION_BINS:
        raise ActionTokenError(
            f"action tokens are {low} to {high}, expected {FIRST_ACTION_TOKEN} to"
            f" {FIRST_ACTION_TOKEN + ACTION_BINS - 1}"
        )
    return tokens


def positions(span: Span, pads: Tensor | None, device: torch.device) -> Tensor:
    """Return (B or 1, T): for each slot, the number of earlier tokens that are not pads.

    A pad has the position of the last token before it. `pads` (B,) is None if no row has any.
    """
    slots = torch.arange(span.start, span.end, device=device)[None]
    if pads is None:
        return slots
    return torch.where(slots < span.prefix, slots, (slots - pads[:, None]).clamp(span.prefix - 1))


def mask(
    span: Span, pads: Tensor | None, like: Tensor, causal: bool = True, window: int | None = None
) -> Tensor:
    """Return (B or 1, 1, T, end): 0 if a slot of the span sees a key, −inf if not.

    A pad sees the tokens before it, so that no row is empty. `window` keys instead of `end`.
    """
    keys = torch.arange(window or span.end, device=like.device)
    queries = torch.arange(span.start, span.end, device=like.device)
    if causal:
        hidden = (keys[None] > queries[:, None])[None]
    else:
        hidden = torch.zeros(1, len(queries), len(keys), dtype=torch.bool, device=like.device)
    if pads is not None:
        pad = (keys[None] >= span.prefix) & (keys[None] < span.prefix + pads[:, None])
        hidden = hidden | pad[:, None]
    blank = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
    return blank.masked_fill(hidden, float("-inf"))[:, None]
