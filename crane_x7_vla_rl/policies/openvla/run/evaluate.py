"""Probabilities of given actions, with gradients, for PPO and its value head.

Images, prompts and action tokens → log-probabilities, entropies and a hidden state. The whole
sequence passes the modules in one causal pass, so that adapters apply and gradients flow; the
values equal those that `rollout` reported when it chose the tokens. Pads are at the end here,
`[BOS] [image tokens] [text] [29871] [action] [pads]`. No token sees them, so attention needs no
mask; with a mask, CUDA's fastest kernels are not available.

Legend: B batch, D action dimensions, H hidden size, P prefix slots (BOS and image), L text slots, T
slots of a row, P + L + D − 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from crane_x7_vla_rl.actions import FIRST_ACTION_TOKEN
from crane_x7_vla_rl.policies.openvla.model.language import Pass, rotary_table
from crane_x7_vla_rl.policies.openvla.model.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.run.device import launching_on
from crane_x7_vla_rl.policies.openvla.run.sequence import (
    Prompts,
    check_actions,
    pack,
)
from crane_x7_vla_rl.prompt import BOS_TOKEN


class Evaluation(NamedTuple):
    """Probabilities of given actions."""

    log_probs: Tensor
    """(B, D) float32, of each token among the 256 action rows."""
    entropy: Tensor
    """(B, D) float32, nats, of the distribution that each token was sampled from."""
    hidden: Tensor
    """(B, H), final hidden state at the prompt's end: depends on image and instruction alone."""
    distribution: Tensor
    """(B, D, 256) float32, log-probabilities of tokens 31744…31999."""


def evaluate(
    model: OpenVLA,
    images: Tensor,
    instructions: Sequence[Tensor],
    action_tokens: Tensor,
    temperature: float = 1.0,
) -> Evaluation:
    """Return the values for `action_tokens` (B, D), ids 31744…31999, at `temperature`.

    `images` are pixels (B, 6·I, S, S) or patches (B, I·N, H) from `encode`, which can be reused
    if vision is frozen; `instructions` are B 1-D tensors of prompt ids. Raises PromptError,
    ActionTokenError, ImageError, and ValueError for a temperature that is not above 0.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}, expected a positive number")
    prefix = 1 + model.count_patches(images, len(instructions))
    tokens = check_actions(action_tokens, len(instructions))
    steps = tokens.shape[1]
    prompts = pack(instructions, model.config, prefix, steps)
    hidden = _hidden(model, images, prompts, tokens, prefix)  # (B, D, H)
    logits = model.action_logits(hidden) / temperature  # (B, D, 256)
    distribution = functional.log_softmax(logits, dim=-1)
    chosen = (tokens.to(logits.device) - FIRST_ACTION_TOKEN).unsqueeze(-1)  # (B, D, 1)
    return Evaluation(
        log_probs=distribution.gather(-1, chosen).squeeze(-1),
        entropy=-(distribution.exp() * distribution).sum(-1),
        hidden=hidden[:, 0],
        distribution=distribution,
    )


def _hidden(
    model: OpenVLA, images: Tensor, prompts: Prompts, tokens: Tensor, prefix: int
) -> Tensor:
    """Return (B, D, H): final hidden states from which each action token is read."""
    language = model.language_model.model
    like = model.projector.fc3.bias
    steps = tokens.shape[1]
    patches = images.to(like) if images.ndim == 3 else model.encode(images.to(like))
    ids, read = _rows(prompts, tokens, like.device)
    bos = language.embed_tokens(ids.new_full((len(ids), 1), BOS_TOKEN))  # (B, 1, H)
    x = torch.cat([bos, patches, language.embed_tokens(ids)], dim=1)  # (B, T, H)
    cos, sin = rotary_table(model.config.text, x.shape[1], like)
    read = read + prefix  # (B or 1, D)
    this = Pass(
        cos=cos[None, :, None],
        sin=sin[None, :, None],
        mask=None,
        keep=steps,
        read=read if prompts.padded else None,
        keep_mask=_before(read, x.shape[1], like),
    )
    with launching_on(x):
        hidden: Tensor = language(x, this)
    return hidden


def _rows(prompts: Prompts, tokens: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids after the image, pads last, and the slots from which action tokens are read.

    (B, L + D − 1) int64, and (B or 1, D) of its slots, from each prompt's end on.
    """
    ids = torch.cat([prompts.ids.to(device), tokens[:, :-1].to(device)], dim=1)
    slots = torch.arange(ids.shape[1], device=device)[None]  # (1, L + D − 1)
    read = slots[:, -tokens.shape[1] :]
    if not prompts.padded:
        return ids, read
    pads = prompts.pads.to(device)[:, None]
    return ids.gather(1, (slots + pads) % ids.shape[1]), read - pads


def _before(read: Tensor, end: int, like: Tensor) -> Tensor:
    """Return (B or 1, 1, D, end): 0 up to each slot that is read, −inf after it."""
    hidden = torch.arange(end, device=like.device) > read.unsqueeze(-1)  # (B or 1, D, end)
    blank = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
    return blank.masked_fill(hidden, float("-inf"))[:, None]
