"""Vision, prefill and decode over static buffers. Images and prompts → a `Rollout`.

`Engine` holds one model's state for inference: joined weights, rotary tables, and for each batch
size its buffers with the steps that use them (`Replay`: CUDA graphs, plain calls elsewhere).
`runner.Runner` keeps one up to date. Argmax would turn NaN logits into an action: the last step
marks their tokens, on the device, see `finite`.

The buffers keep the last call: the same images again skip vision and the image's part of the
prefill; with the same prompt, too, the whole prefill is skipped. Both are exact: keys and values of
the image do not depend on later tokens.

Legend: B batch, I images, N 256 patches, P = 1 + I·N prefix slots, L text slots, D steps.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from crane_x7_vla_rl.policies.openvla.model.language import Pass, rotary_table
from crane_x7_vla_rl.policies.openvla.model.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.run.bindings import Bindings
from crane_x7_vla_rl.policies.openvla.run.buffers import Answer, Buffers
from crane_x7_vla_rl.policies.openvla.run.decode import Decoder, finish
from crane_x7_vla_rl.policies.openvla.run.inference import infer
from crane_x7_vla_rl.policies.openvla.run.low_bit import Kind, reduced
from crane_x7_vla_rl.policies.openvla.run.replay import Replay
from crane_x7_vla_rl.policies.openvla.run.sequence import Prompts, Span, mask, pack, positions
from crane_x7_vla_rl.policies.openvla.run.speculation import draft, repeat_until, settle, verify
from crane_x7_vla_rl.policies.openvla.run.vision import see
from crane_x7_vla_rl.prompt import BOS_TOKEN

CUDA_BUCKET = 16
"""Unequal prompts are padded up to a multiple of this, to share graphs; each pad costs 0.3 % of a
prefill."""
MAX_STEPS_KEPT = 32
"""Captured steps per batch size; the least recently used is discarded."""


@dataclass(frozen=True, eq=False)
class Rollout:
    """The model's choice; on CUDA, still being computed."""

    tokens: Tensor
    """(B, D) int64, 31744…31999; NO_TOKEN in rows with a logit that is NaN or infinite."""
    log_probs: Tensor
    """(B, D) float32, of each token among the 256 at the temperature (at 1 if that is 0)."""
    hidden: Tensor
    """(B, H), final hidden state at the prompt's end, before any action: for a value head."""
    logits: Tensor
    """(B, D, 256) float32, of tokens 31744…31999, before the temperature."""
    passes: int
    """Passes of the language model after the prefill: D − 1 one by one, 0 to D − 1 with
    `speculation`."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen."""

    temperature: float = 0.0
    """0: the most likely token; above 0: sampled from softmax(logits / temperature)."""
    generator: torch.Generator | Sequence[torch.Generator] | None = None
    """On the model's device: one for all samples, or one for each, so that samples do not depend on
    each other; None: torch's default."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}, expected 0 or a positive number")


@dataclass(frozen=True, eq=False)
class Packed:
    """The last prompts, and their tensors."""

    ids: Sequence[Tensor]
    room: tuple[int, int]
    """Slots before and after the text."""
    prompts: Prompts


class Engine:
    """Runs one model without gradients, in its state when the engine was built; see `current`."""

    def __init__(
        self,
        model: OpenVLA,
        bucket: int | None,
        decode_weights: Kind | None,
        speculate: bool = False,
    ) -> None:
        self.model, self.speculate = model, speculate
        self.like = model.projector.fc3.bias.detach()
        self.bucket = bucket or (CUDA_BUCKET if self.like.is_cuda else 1)
        self.matrices = model.language_model.model.joined(move=model.owns_memory)
        self._copied: Hashable = None
        self.cos, self.sin = rotary_table(model.config.text, model.config.context, self.like)
        self.bindings = Bindings(model)
        self._adapted = self.bindings.version()
        weights = self.matrices
        if decode_weights is not None:
            weights = reduced(self.matrices, decode_weights)
            self._copied = self.bindings.version()
        self.decoder = Decoder(model, weights, self._rotary)
        self._buffers: OrderedDict[tuple[int, int], Buffers] = OrderedDict()
        self._packed: Packed | None = None
        self.remember = True
        """See `Runner.remember`."""

    def current(self) -> bool:
        """Whether modules and memory are still those of the graphs and joined weights.

        Weights in 8 bits are copies, so their values must be unchanged, too.
        """
        fresh = self._copied is None or self._copied == self.bindings.version()
        return fresh and self.bindings.hold()

    def refresh(self) -> None:
        """Copy adapters that have changed into the memory that captured graphs read."""
        version = self.bindings.version()
        if version != self._adapted:
            for layer in self.matrices:
                layer.refresh()
            self._adapted = version

    def __call__(
        self, images: Tensor, input_ids: Sequence[Tensor], steps: int, sampling: Sampling
    ) -> Rollout:
        """Return `steps` tokens for images: pixels (B, 6·I, S, S) or patches (B, I·N, H)."""
        prefix = 1 + self.model.count_patches(images, len(input_ids))
        prompts = self._pack(input_ids, prefix, steps)
        buffers = self._take_buffers(len(images), prefix, prompts.length, steps)
        span = Span(prefix, 0, prefix + prompts.length)
        answer = Answer(span, prompts.padded, steps, sampling.temperature > 0)
        held = self._take_images(buffers, images)
        _prepare(buffers, steps, sampling)
        # Where weights are sharded, all processes must make the same number of passes.
        if self.speculate and steps > 2 and self.model.owns_memory:
            passes = self._speculate(buffers, prompts, answer, held)
        else:
            self._take_prompts(buffers, prompts, held)
            self._decode(buffers, answer)
            passes = steps - 1
        return Rollout(
            tokens=buffers.tokens[:, :steps].clone(),
            log_probs=buffers.log_probs[:, :steps].clone(),
            hidden=buffers.hidden.clone(),
            logits=buffers.logits[:, :steps].clone(),
            passes=passes,
        )

    def forget_draft(self) -> None:
        """Start the next speculation without the last action."""
        for buffers in self._buffers.values():
            buffers.logits[:, 1:] = 0  # the first step's are those of a prefill that is kept

    def _pack(self, input_ids: Sequence[Tensor], prefix: int, steps: int) -> Prompts:
        """Return the prompts; those of the call before if they are the same."""
        last = self._packed
        if last is not None and last.room == (prefix, steps) and _all_equal(last.ids, input_ids):
            return last.prompts
        prompts = pack(input_ids, self.model.config, prefix, steps, self.bucket)
        self._packed = Packed([ids.clone() for ids in input_ids], (prefix, steps), prompts)
        return prompts

    def _take_buffers(self, batch: int, prefix: int, length: int, steps: int) -> Buffers:
        key = (batch, prefix)
        found = self._buffers.get(key)
        if found is None or not found.fits(length, steps):
            self._buffers.pop(key, None)
            while len(self._buffers) > 1:
                self._buffers.popitem(last=False)
            found = self._buffers[key] = Buffers(
                self.model.config, self.like, batch, prefix, length, steps
            )
        self._buffers.move_to_end(key)
        return found

    def _take_images(self, buffers: Buffers, images: Tensor) -> bool:
        """Write patches into the buffers; return whether the prefix slots already hold them."""
        images = images.detach().to(self.like)
        weights = self.bindings.version()
        kind = (images.ndim, weights)
        known = buffers.pixels if images.ndim == 4 else buffers.patches
        same = self.remember and buffers.held_prefix == kind
        if same and known is not None and torch.equal(known, images):
            return True
        buffers.held_prefix = None
        if images.ndim == 4:
            if buffers.pixels is None:
                buffers.pixels = torch.empty_like(images, memory_format=torch.contiguous_format)
            buffers.pixels.copy_(images)
            self._replay(buffers, "vision", lambda: self._see(buffers))
        else:
            buffers.patches.copy_(images)
        buffers.held_prefix = kind
        return False

    def _take_prompts(
        self, buffers: Buffers, prompts: Prompts, prefix_held: bool, drafted: Answer | None = None
    ) -> None:
        """Fill the cache up to the prompt's end, from the prefix's end if that is cached.

        A draft of the answer passes along if there is one, as in `speculation.verify`.
        """
        same = buffers.held_prompt is not None and _same(buffers.held_prompt, prompts)
        if prefix_held and same:
            return
        buffers.held_prompt = None
        if not same:
            buffers.ids[:, : prompts.length].copy_(prompts.ids)
            buffers.pads.copy_(prompts.pads)
        start = buffers.prefix if prefix_held else 0
        span = Span(buffers.prefix, start, buffers.prefix + prompts.length)
        self._replay(
            buffers,
            ("prefill", span, prompts.padded, drafted),
            partial(self._prefill, buffers, span, prompts.padded, drafted),
        )
        buffers.held_prompt = prompts

    def _decode(self, buffers: Buffers, answer: Answer) -> None:
        one_by_one = partial(self.decoder.one_by_one, buffers, answer)
        self._replay(buffers, ("decode", answer), one_by_one)

    def _speculate(
        self, buffers: Buffers, prompts: Prompts, answer: Answer, prefix_held: bool
    ) -> int:
        """Prefill and decode; return the number of passes after the prefill."""
        self._replay(buffers, ("draft", answer), partial(draft, buffers, answer))
        self._take_prompts(buffers, prompts, prefix_held, answer)
        if self._copied is not None:
            buffers.settled.fill_(False)  # the prefill has not the weights of the decode
        check = partial(verify, self.decoder, buffers, answer)
        run = partial(self._replay, buffers, ("verify", answer), check)
        passes = repeat_until(buffers.settled, run, most=answer.steps - 1)
        self._replay(buffers, ("finish", answer.steps), partial(finish, buffers, answer.steps))
        return passes

    def _replay(self, buffers: Buffers, key: Hashable, run: Any) -> None:
        if not self.model.owns_memory:  # a graph would point at memory that is freed later
            run()
            return
        replay = buffers.replays.get(key)
        if replay is None:
            if len(buffers.replays) >= MAX_STEPS_KEPT:
                buffers.replays.popitem(last=False)
            replay = buffers.replays[key] = Replay(run, self.like.device, buffers.pool)
        buffers.replays.move_to_end(key)
        replay()

    # The methods below may be captured: they use only buffers, and never wait.

    def _see(self, buffers: Buffers) -> None:
        assert buffers.pixels is not None
        buffers.patches.copy_(see(self.model, buffers.pixels))

    def _prefill(self, buffers: Buffers, text: Span, padded: bool, drafted: Answer | None) -> None:
        pads = buffers.pads if padded else None
        embed = self.model.language_model.model.embed_tokens
        # Without a draft, `given` is empty: (B, 0).
        ids = buffers.ids[:, : text.end - text.prefix]
        given = buffers.tokens[:, : drafted.steps - 1 if drafted else 0].clone()
        x = embed(torch.cat([ids, given], dim=1))  # (B, L + draft, H)
        if text.start == 0:
            bos = embed(buffers.ids.new_full((buffers.batch, 1), BOS_TOKEN))  # (B, 1, H)
            x = torch.cat([bos, buffers.patches, x], dim=1)  # (B, P + L + draft, H)
        keep = 1 + given.shape[1]
        span = Span(text.prefix, text.start, text.end + given.shape[1])
        seen, keep_mask, window = None, None, None
        if padded or span.start > 0:
            window = buffers.window(span.end) if drafted else None
            seen = mask(span, pads, self.like, window=window)
            keep_mask = seen[:, :, -keep:]
        elif drafted:
            keep_mask = mask(Span(text.prefix, text.end - 1, span.end), None, self.like)
        cos, sin = self._rotary(span, pads)
        this = Pass(
            cos=cos,
            sin=sin,
            mask=seen,
            keep=keep,
            keep_mask=keep_mask,
            cache=buffers.cache,
            start=span.start,
            window=window,
        )
        hidden = infer(self.model.language_model.model, x, this, self.matrices)  # (B, keep, H)
        buffers.hidden.copy_(hidden[:, 0])
        buffers.logits[:, :keep] = self.model.action_logits(hidden)
        if drafted:
            settle(buffers, drafted, given)

    def _rotary(self, span: Span, pads: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return cos and sin of the span's slots, each (B or 1, T, 1, d)."""
        if pads is None:
            cos, sin = self.cos[None, span.start : span.end], self.sin[None, span.start : span.end]
        else:
            at = positions(span, pads, self.like.device)
            cos, sin = self.cos[at], self.sin[at]
        return cos.unsqueeze(2), sin.unsqueeze(2)


def _all_equal(held: Sequence[Tensor], new: Sequence[Tensor]) -> bool:
    return len(held) == len(new) and all(
        a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
        for a, b in zip(held, new, strict=True)
    )


def _prepare(buffers: Buffers, steps: int, how: Sampling) -> None:
    """Write temperature and noise of a call."""
    noisy = how.temperature > 0
    if noisy:
        _draw(buffers.noise[:, :steps], how.generator)
    buffers.temperature.fill_(how.temperature if noisy else 1.0)


def _draw(noise: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None) -> None:
    """Fill (B, D, 256) with Gumbel noise."""
    if isinstance(generator, Sequence):
        for sample, own in zip(noise, generator, strict=True):
            sample.exponential_(generator=own)
    else:
        noise.exponential_(generator=generator)
    noise.log_().neg_()


def _same(held: Prompts, new: Prompts) -> bool:
    if held is new:
        return True
    return torch.equal(held.pads, new.pads) and torch.equal(held.ids, new.ids)
