"""Effect of 8-bit decode on a model's actions. A model and samples → an `ActionError`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from crane_x7_vla_rl.actions import tokens_to_normalised
from crane_x7_vla_rl.policies.openvla.model.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.run.low_bit import Kind
from crane_x7_vla_rl.policies.openvla.run.rollout import Rollout
from crane_x7_vla_rl.policies.openvla.run.runner import Runner


@dataclass(frozen=True)
class ActionError:
    """Difference of greedy actions between 8-bit decode and the model's own weights."""

    kind: str
    same_tokens: float
    """Share of tokens that stay the same."""
    mean: float
    """Mean absolute difference of normalised actions, which span −1 to 1."""
    largest: float
    log_prob: float
    """Largest difference of log-probability among the tokens before the first that differs."""
    logits: float
    """Root mean square difference of logits after equal tokens, see `logits_apart`."""


def compare(
    model: OpenVLA, kind: Kind, images: Tensor, input_ids: Sequence[Tensor], action_dim: int
) -> ActionError:
    """Return the error of `kind` on these samples; raises NotFiniteError."""
    exact = Runner(model).roll_out(images, input_ids, action_dim)
    coarse = Runner(model, kind).roll_out(images, input_ids, action_dim)
    ours, theirs = (tokens_to_normalised(model.on_host(r.tokens)) for r in (coarse, exact))
    alike = (coarse.tokens == exact.tokens).cumprod(dim=1).bool()
    drift = (coarse.log_probs - exact.log_probs).abs()[alike]
    return ActionError(
        kind=kind,
        same_tokens=float((coarse.tokens == exact.tokens).float().mean()),
        mean=float(abs(ours - theirs).mean()),
        largest=float(abs(ours - theirs).max()),
        log_prob=float(drift.max()) if len(drift) else 0.0,
        logits=logits_apart(coarse, exact),
    )


def logits_apart(ours: Rollout, theirs: Rollout) -> float:
    """Return the root mean square difference of logits at steps that follow the same tokens.

    Each step's mean is removed, since a softmax does not see it. The first step is left out: it
    belongs to the prefill, whose weights are the model's own. 0.0 where no other step is left.
    """
    equal = (ours.tokens == theirs.tokens)[:, :-1].cumprod(dim=1).bool()  # (B, D − 1)
    difference = (ours.logits.double() - theirs.logits.double())[:, 1:][equal]  # (steps, 256)
    if not len(difference):
        return 0.0
    centred = difference - difference.mean(-1, keepdim=True)
    return float(centred.square().mean().sqrt())
