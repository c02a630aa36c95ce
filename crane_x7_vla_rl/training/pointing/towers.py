"""Towers with FiLM learn where the named cube is. Model, pictures → a model whose towers know it.

Each patch alone must tell the place of the named cube and of the plate, so all patches carry it to
the language model. Each picture comes with every colour's instruction in one batch: with pictures
that have one instruction each, small towers learned the mean place of all cubes and no more. So did
they from each patch alone, and with new FiLM that hardly told the prompts apart (docs/log.md):
all patches together also tell where all things are, and their mean where the named cube is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from crane_x7_vla_rl.policies.openvla.image import normalised
from crane_x7_vla_rl.policies.openvla.model.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.model.vision import Film
from crane_x7_vla_rl.policies.openvla.run.oft import instruction
from crane_x7_vla_rl.policies.openvla.run.sequence import pack
from crane_x7_vla_rl.training.pointing.descent import Descent, Group, descend, parameters
from crane_x7_vla_rl.training.pointing.kept import Kept
from crane_x7_vla_rl.training.pointing.views import Views

PICTURES: Final = 16
"""In a batch, each with every instruction."""
HIDDEN: Final = 256
TINY: Final = 1e-8
EMBEDDINGS: Final = "language_model.model.embed_tokens."
LANGUAGE: Final = ("language_model.model.layers.", "language_model.model.norm.",
                   "language_model.lm_head.")  # fmt: skip
TOLD_APART: Final = 0.2
"""Deviation of new FiLM's factors and offsets from prompt to prompt of a task. Prompts differ in a
word or two, so what they have in common must cancel."""


class Pointer(nn.Module):
    """Places from a patch, or from the mean of all; only used while towers learn."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.LayerNorm(hidden), nn.Linear(hidden, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 4)
        )

    def forward(self, patches: Tensor) -> Tensor:
        """(B, N, H) → (B, N, 4): x, y of the cube, x, y of the plate, in standard deviations."""
        found: Tensor = self.network(_scaled_patches(patches))
        return found


@torch.no_grad()
def add_film(model: OpenVLA, tasks: Sequence[list[Tensor]], is_random: bool) -> None:
    """Give the towers FiLM that tells the prompts of a task apart, but not the tasks.

    `is_random`: the model's weights mean nothing yet.
    """
    model.vision_backbone.add_film(model.config.text.hidden_size)
    if is_random:
        nn.init.normal_(model.language_model.model.embed_tokens.weight)
    read = torch.stack([told(model, prompts) for prompts in tasks])  # (tasks, C, H)
    of_task = read.mean(1)  # (tasks, H)
    common = of_task.mean(0)
    apart = float((read - of_task[:, None]).norm(dim=-1).mean())
    alike = torch.linalg.qr((of_task[1:] - of_task[0]).T).Q  # (H, tasks − 1), orthonormal
    for module in model.vision_backbone.modules():
        if isinstance(module, Film):
            for layer in (module.scale, module.shift):
                nn.init.normal_(layer.weight, std=TOLD_APART / max(apart, TINY))
                layer.weight -= layer.weight @ alike @ alike.T
                layer.bias.copy_(-layer.weight @ common)


def told(model: OpenVLA, prompts: list[Tensor]) -> Tensor:
    """Return what FiLM reads of prompts, (B, H)."""
    packed = pack(prompts, model.config, 1, 1)
    found = instruction(model, packed.ids, packed.pads if packed.padded else None)
    assert found is not None
    return found


def scaled(views: Views) -> Tensor:
    """Return the places of all things, (N, C + 1, 2), in standard deviations."""
    places = views.things_m
    return torch.from_numpy((places - places.mean((0, 1))) / places.std((0, 1))).float()


def teach(
    model: OpenVLA, tasks: Sequence[list[Tensor]], views: Views, stage: Descent, seed: int,
    kept: Kept | None = None,
) -> tuple[Pointer, list[float]]:  # fmt: skip
    """Train towers, projector and embeddings; the prompts of each task name the cubes in the order
    of `views`.

    Returns what reads places from each patch now, and its mean error in each update, in standard
    deviations of a coordinate. Raises what `descend` does.
    """
    targets, hidden = scaled(views), model.config.text.hidden_size
    pointer, of_mean = Pointer(hidden), Pointer(hidden)
    finder = nn.LazyLinear(targets[0].numel())
    colours = len(tasks[0])
    apart: list[float] = []

    def loss(update: int) -> Tensor:
        rows = np.random.default_rng([seed, 1, update]).integers(0, len(views.images), PICTURES)
        pixels = normalised(torch.from_numpy(views.images[rows]).permute(0, 3, 1, 2), torch.float32)
        patches = encode(pixels, tasks[update % len(tasks)])  # (P·C, N, H)
        cubes = targets[rows, :colours].flatten(0, 1)  # (P·C, 2)
        plate = targets[rows, colours].repeat_interleave(colours, 0)
        wanted = torch.cat([cubes, plate], dim=1)[:, None]
        things = targets[rows].flatten(1).repeat_interleave(colours, 0)  # (P·C, 2·(C + 1))
        each = (pointer(patches) - wanted).abs().mean()
        mean = (of_mean(patches.mean(1, keepdim=True)) - wanted).abs().mean()
        everything = (finder(_scaled_patches(patches).flatten(1)) - things).abs().mean()
        apart.append(each.item())
        total: Tensor = each + mean + everything
        return total

    def encode(pixels: Tensor, prompts: list[Tensor]) -> Tensor:
        words = told(model, prompts).repeat(len(pixels), 1)  # (P·C, H)
        return model.encode(pixels.repeat_interleave(colours, 0), told=words)

    model.requires_grad_(False)
    with torch.no_grad():  # the number of patches
        one = normalised(torch.from_numpy(views.images[:1]).permute(0, 3, 1, 2), torch.float32)
        finder(encode(one, tasks[0]).flatten(1))
    heads = [each for part in (pointer, of_mean, finder) for each in parameters(part)]
    descend(stage, [Group(parameters(model, but=LANGUAGE) + heads)], loss, kept)
    return pointer, apart


def _scaled_patches(patches: Tensor) -> Tensor:
    """Return (B, N, H), scaled as the language model's first norm scales them."""
    return functional.rms_norm(patches, patches.shape[-1:], eps=1e-6)
