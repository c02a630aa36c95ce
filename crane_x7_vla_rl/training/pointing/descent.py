"""AdamW on a function that draws its own batches. Parameters, loss → trained weights.

A stage may keep what it has reached, so that the same call continues there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from crane_x7_vla_rl.training.errors import NotFiniteError, ResumeError
from crane_x7_vla_rl.training.pointing.kept import Kept
from crane_x7_vla_rl.training.schedule import learning_rate

logger = logging.getLogger(__name__)

WARMUP_RATIO: Final = 0.05
LARGEST_NORM: Final = 1.0
LOGGED: Final = 100
"""Updates between two lines of the log."""
SAVED: Final = 250
"""Updates between two states that are kept: about two minutes of the shipped policy's."""


@dataclass(frozen=True, eq=False)
class Group:
    """Parameters that learn alike."""

    parameters: list[nn.Parameter]
    share: float = 1.0
    """Of the stage's rate."""
    frozen: int = 0
    """Updates before they begin to learn."""


@dataclass(frozen=True)
class Descent:
    """One stage of training."""

    name: str
    updates: int
    rate: float
    """Peak of the learning rate."""


def descend(
    stage: Descent, groups: Sequence[Group], loss: Callable[[int], Tensor], kept: Kept | None = None
) -> list[float]:
    """Update the parameters; returns the loss of each update, from the first one done here on.

    `loss` gets the number of the update, from 0. Raises NotFiniteError, and with `kept`
    OutputError and ResumeError.
    """
    learning = [parameter for group in groups for parameter in group.parameters]
    optimizer = torch.optim.AdamW(
        [{"params": group.parameters} for group in groups],
        stage.rate, weight_decay=0.01, fused=True,
    )  # fmt: skip
    first = 0 if kept is None else _continue(stage, learning, optimizer, kept)
    losses: list[float] = []
    started_s = time.monotonic()
    for update in range(first, stage.updates):
        rate = learning_rate(update, stage.updates, WARMUP_RATIO, stage.rate)
        for group, settings in zip(groups, optimizer.param_groups, strict=True):
            settings["lr"] = group.share * rate
            for parameter in group.parameters:
                parameter.requires_grad_(update >= group.frozen)
        optimizer.zero_grad()
        found = loss(update)
        found.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(learning, LARGEST_NORM)
        if not bool(torch.isfinite(norm)):
            raise NotFiniteError(f"{stage.name}: the gradient of update {update + 1} is not finite")
        optimizer.step()
        losses.append(found.item())
        done, is_last = update + 1, update + 1 == stage.updates
        if done % LOGGED == 0 or is_last:
            recent = losses[-LOGGED:]
            logger.info(
                "%s: update %d of %d, loss %.4f, %.3f s per update",
                stage.name, done, stage.updates, sum(recent) / len(recent),
                (time.monotonic() - started_s) / (done - first),
            )  # fmt: skip
        if kept is not None and (done % SAVED == 0 or is_last):
            values = [parameter.detach() for parameter in learning]
            state = {"updates": done, "values": values, "optimizer": optimizer.state_dict()}
            kept.save(stage.name, state)
    return losses


@torch.no_grad()
def _continue(
    stage: Descent, learning: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, kept: Kept
) -> int:
    """Return how many updates are done, with the parameters as they left them."""
    state = kept.load(stage.name)
    if state is None:
        return 0
    shapes = [value.shape for value in state["values"]]
    if shapes != [parameter.shape for parameter in learning]:
        raise ResumeError(
            f"{kept.folder}: {stage.name} was begun with a model of other sizes; remove the folder"
        )
    for parameter, value in zip(learning, state["values"], strict=True):
        parameter.copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    done = int(state["updates"])
    logger.info("%s: continues after update %d of %d", stage.name, done, stage.updates)
    return done


def parameters(
    module: nn.Module, of: Iterable[str] = ("",), but: Iterable[str] = ()
) -> list[nn.Parameter]:
    """Return the parameters whose names begin with one of `of` and none of `but`."""
    return [
        parameter
        for name, parameter in module.named_parameters()
        if name.startswith(tuple(of)) and not name.startswith(tuple(but))
    ]
