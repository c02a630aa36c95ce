"""Exact speculative decoding of an action's tokens: fewer passes, the same tokens.

A draft of the answer passes the model at once, D − 1 tokens. This costs about as much as one token,
because reading the weights limits both. The pass chooses each token after the draft's tokens before
it; its choice is the next draft, until a pass chooses the draft that it was given: a Jacobi
iteration. The first pass is the prefill, to whose prompt the draft is appended: if the draft is
right, no other follows. After the prefill the first token is final, and each pass makes at least
one more final: D − 1 passes are always enough, as many as one by one.

The result is exact. The final tokens are the choice of a pass that read these very tokens: each is
the most likely one after those before it, and log-probabilities and logits are of that pass. One by
one gives the same tokens, except where two are so close that rounding decides, which differs with
the shape of the products.

Sampled tokens need no rejection step: a token is argmax(logits / temperature + noise), and the
Gumbel noise of each step is drawn before the first pass. Given the noise, sampling is as
deterministic as argmax: the iteration ends at the tokens that one by one samples with this noise.

The first draft is what the logits of the last call, still in the buffers, choose with the noise of
this call: the last action where tokens are greedy. A draft affects the number of passes only.

Paper: Santilli et al. 2023, Jacobi decoding, https://arxiv.org/abs/2305.10427. Departures: the last
action as the first draft; sampled tokens.

Legend: B batch, D steps.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from crane_x7_vla_rl.policies.openvla.model.language import Pass
from crane_x7_vla_rl.policies.openvla.run.buffers import Answer, Buffers
from crane_x7_vla_rl.policies.openvla.run.decode import Decoder, choose
from crane_x7_vla_rl.policies.openvla.run.sequence import Span, mask


def draft(buffers: Buffers, answer: Answer) -> None:
    """Write a draft, of which nothing has settled. May be captured."""
    choose(buffers, slice(0, answer.steps), answer.noisy)
    buffers.settled.fill_(False)
    start = answer.prompt.end
    buffers.cache.blank(start, buffers.window(start + answer.steps - 1))


def verify(decoder: Decoder, buffers: Buffers, answer: Answer) -> None:
    """Choose each token after the draft's tokens before it, in one pass. May be captured.

    A further run, as a capture makes, comes closer to the result, or repeats it.
    """
    pads = buffers.pads if answer.padded else None
    start, steps = answer.prompt.end, answer.steps
    after = Span(answer.prompt.prefix, start, start + steps - 1)
    cos, sin = decoder.rotary(after, pads)
    window = buffers.window(after.end)
    this = Pass(
        cos=cos,
        sin=sin,
        mask=mask(after, pads, decoder.like, window=window),
        cache=buffers.cache,
        start=start,
        window=window,
    )
    given = buffers.tokens[:, : steps - 1].clone()
    buffers.logits[:, 1:steps] = decoder.logits(given, this)
    settle(buffers, answer, given)


def settle(buffers: Buffers, answer: Answer, given: Tensor) -> None:
    """Choose all tokens after a pass that read `given` (B, D − 1); compare. May be captured."""
    choose(buffers, slice(0, answer.steps), answer.noisy)
    buffers.settled.copy_((buffers.tokens[:, : answer.steps - 1] == given).all())


def repeat_until(settled: Tensor, run: Callable[[], None], most: int) -> int:
    """Run until `settled` (), which each run writes, is true; return the number of runs.

    Waits for the device before each run. The result of the last of `most` is final anyway.
    """
    runs = 0
    while runs < most and not bool(settled):
        run()
        runs += 1
    return runs
