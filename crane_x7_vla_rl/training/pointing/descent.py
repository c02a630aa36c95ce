"""AdamW on a function that draws its own batches. Parameters, loss → trained weights."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from crane_x7_vla_rl.training.errors import NotFiniteError
from crane_x7_vla_rl.training.schedule import learning_rate

logger = logging.getLogger(__name__)

WARMUP_RATIO: Final = 0.05
LARGEST_NORM: Final = 1.0
LOGGED: Final = 100
"""Updates between two lines of the log."""


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


def descend(stage: Descent, groups: Sequence[Group], loss: Callable[[], Tensor]) -> list[float]:
    """Update the parameters; returns the loss of each update. Raises NotFiniteError."""
    learning = [parameter for group in groups for parameter in group.parameters]
    optimizer = torch.optim.AdamW(
        [{"params": group.parameters} for group in groups],
        stage.rate, weight_decay=0.01, fused=True,
    )  # fmt: skip
    losses: list[float] = []
    started_s = time.monotonic()
    for update in range(stage.updates):
        rate = learning_rate(update, stage.updates, WARMUP_RATIO, stage.rate)
        for group, settings in zip(groups, optimizer.param_groups, strict=True):
            settings["lr"] = group.share * rate
            for parameter in group.parameters:
                parameter.requires_grad_(update >= group.frozen)
        optimizer.zero_grad()
        found = loss()
        found.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(learning, LARGEST_NORM)
        if not bool(torch.isfinite(norm)):
            raise NotFiniteError(f"{stage.name}: the gradient of update {update + 1} is not finite")
        optimizer.step()
        losses.append(found.item())
        if (update + 1) % LOGGED == 0 or update + 1 == stage.updates:
            recent = losses[-LOGGED:]
            logger.info(
                "%s: update %d of %d, loss %.4f, %.3f s per update",
                stage.name, update + 1, stage.updates, sum(recent) / len(recent),
                (time.monotonic() - started_s) / (update + 1),
            )  # fmt: skip
    return losses


def parameters(
    module: nn.Module, of: Iterable[str] = ("",), but: Iterable[str] = ()
) -> list[nn.Parameter]:
    """Return the parameters whose names begin with one of `of` and none of `but`."""
    return [
        parameter
        for name, parameter in module.named_parameters()
        if name.startswith(tuple(of)) and not name.startswith(tuple(but))
    ]
