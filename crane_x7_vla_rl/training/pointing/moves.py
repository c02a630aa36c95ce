"""A language model and a head learn the way to what towers point at. Pictures → chunks.

Each picture with an empty hand comes with every colour's instruction, to lift or to place: the way
is the same. Each with a cube in the hand comes with the instruction to place that. Demonstrations
in the same batches teach what comes after. Alone, they teach not to look: a few steps after the
start, the arm's own joints tell where it goes. At first the towers stay as they are: beside random
weights they would forget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from crane_x7_vla_rl.actions import Statistics
from crane_x7_vla_rl.kinematics import UnreachableError
from crane_x7_vla_rl.policies.openvla.image import normalised
from crane_x7_vla_rl.policies.openvla.model.oft_heads import ActionHead, ProprioProjector
from crane_x7_vla_rl.policies.openvla.model.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.run.oft_evaluate import evaluate_chunk
from crane_x7_vla_rl.training.errors import ConfigError
from crane_x7_vla_rl.training.pointing import paths
from crane_x7_vla_rl.training.pointing.descent import Descent, Group, descend, parameters
from crane_x7_vla_rl.training.pointing.kept import Kept
from crane_x7_vla_rl.training.pointing.towers import EMBEDDINGS
from crane_x7_vla_rl.training.pointing.views import Views
from crane_x7_vla_rl.types import Array, Image

PICTURES, PLACINGS, SHOWN = 5, 5, 24
"""In a batch: pictures with an instruction for each cube; with a held cube; demonstrations."""
SEEING: Final = ("vision_backbone.", "projector.", EMBEDDINGS)
HEAD: Final = "language_model.lm_head."
"""Never computed: actions come from another head."""
FROZEN: Final = 0.4
"""Share of the updates during which what sees stays as it is."""
SEEING_SHARE: Final = 0.1
"""Of the learning rate, for what sees, after that."""


@dataclass(frozen=True, eq=False)
class Moves:
    """Chunks for some of the pictures, as the model learns them: normalised float32."""

    rows: Array
    """(M,) the pictures with an empty hand from which each cube can be approached."""
    approaches: Tensor
    """(M, C, T, 8)."""
    carried: Array
    """(K,) the pictures with a cube in the hand that can be carried to the plate."""
    carries: Tensor
    """(K, T, 8)."""
    joints: Tensor
    """(N, 8) measured joints of each picture."""


def plan(views: Views, steps: int, period_s: float, action: Statistics, state: Statistics) -> Moves:
    """Return the expert's chunks for the pictures; raises ConfigError if there are none."""
    rows, approaches, carried, carries = [], [], [], []
    for row, (joints, things) in enumerate(zip(views.joints_rad, views.things_m, strict=True)):
        try:
            if views.held[row] >= 0:
                carry = paths.to_plate(joints, things[-1], steps, period_s)
                if carry is not None:
                    carried.append(row)
                    carries.append(carry)
                continue
            found = [paths.to_cube(joints, cube, steps, period_s) for cube in things[:-1]]
        except UnreachableError:
            continue
        if all(chunk is not None for chunk in found):
            rows.append(row)
            approaches.append(found)
    if not rows or not carried:
        raise ConfigError(
            f"none of {len(views.images)} pictures shows a way to each cube and to the plate:"
            " draw more with --pictures"
        )
    return Moves(
        np.array(rows),
        _tensor(action.normalise(np.array(approaches, dtype=np.float64))),
        np.array(carried),
        _tensor(action.normalise(np.array(carries))),
        _tensor(state.normalise(views.joints_rad)),
    )


def _tensor(values: Array) -> Tensor:
    return torch.from_numpy(np.asarray(values)).float()


@dataclass(frozen=True)
class Words:
    """Prompts, for each cube in the order of the pictures."""

    lift: list[Tensor]
    place: list[Tensor]


@dataclass(frozen=True, eq=False)
class Shown:
    """A batch of demonstrations as the model learns it."""

    images: Image
    """(B, S, S, 3) uint8."""
    prompts: list[Tensor]
    joints: Tensor
    """(B, 8) normalised."""
    chunks: Tensor
    """(B, T, 8) normalised."""


def teach(
    model: OpenVLA, heads: tuple[ActionHead, ProprioProjector], words: Words, views: Views,
    moves: Moves, stage: Descent, seed: int, demonstrations: Callable[[int], Shown] | None = None,
    is_new: bool = True, kept: Kept | None = None,
) -> list[float]:  # fmt: skip
    """Train language model and heads, later all; returns what `descend` does, and raises that.

    `demonstrations` returns the batch of an update; `is_new`: the heads have not learned yet.
    """
    steps, colours = moves.approaches.shape[2], len(words.lift)

    def loss(update: int) -> Tensor:
        generator = np.random.default_rng([seed, 2, update])
        some = generator.integers(0, len(moves.rows), PICTURES)
        others = generator.integers(0, len(moves.carried), PLACINGS)
        places = generator.integers(0, 2, PICTURES)
        rows = np.concatenate([moves.rows[some].repeat(colours), moves.carried[others]])
        images = [views.images[rows]]
        prompts = [prompt for place in places for prompt in (words.place if place else words.lift)]
        prompts += [words.place[views.held[row]] for row in moves.carried[others]]
        state = [moves.joints[rows]]
        wanted = [moves.approaches[some].flatten(0, 1), moves.carries[others]]
        if demonstrations is not None:
            shown = demonstrations(update)
            images.append(shown.images)
            prompts += shown.prompts
            state.append(shown.joints)
            wanted.append(shown.chunks)
        pictures = torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2)
        pixels = normalised(pictures, torch.float32)
        found = evaluate_chunk(model, heads, pixels, prompts, torch.cat(state), steps)
        return functional.l1_loss(found, torch.cat(wanted))

    model.requires_grad_(False)
    acting = parameters(model, but=(*SEEING, HEAD))
    for head in heads:
        acting += parameters(head)
    still = round(FROZEN * stage.updates) if is_new else 0
    seeing = Group(parameters(model, of=SEEING), SEEING_SHARE, still)
    return descend(stage, [Group(acting), seeing], loss, kept)
