"""Towers with FiLM learn where the named cube is. Model, pictures → a model whose towers know it.

Each patch alone must tell the place of the named cube and of the plate, so all patches carry it to
the language model. Each picture comes with every colour's instruction in one batch: with pictures
that have one instruction each, small towers learned the mean place of all cubes and no more.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from crane_x7_vla_rl.policies.openvla.image import normalised
from crane_x7_vla_rl.policies.openvla.model.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.run.oft import instruction
from crane_x7_vla_rl.policies.openvla.run.sequence import pack
from crane_x7_vla_rl.training.pointing.descent import Descent, Group, descend, parameters
from crane_x7_vla_rl.training.pointing.views import Views

PICTURES: Final = 16
"""In a batch, each with every instruction."""
HIDDEN: Final = 256
EMBEDDINGS: Final = "language_model.model.embed_tokens."
LANGUAGE: Final = ("language_model.model.layers.", "language_model.model.norm.",
                   "language_model.lm_head.")  # fmt: skip
FILM_STD: Final = 0.1
"""Of new FiLM, with embeddings of unit variance: both would start learning late from less."""


class Pointer(nn.Module):
    """Places from a patch; only used while towers learn."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.LayerNorm(hidden), nn.Linear(hidden, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 4)
        )

    def forward(self, patches: Tensor) -> Tensor:
        """(B, N, H) → (B, N, 4): x, y of the cube, x, y of the plate, in standard deviations.

        Patches are scaled as the language model's first norm scales them.
        """
        found: Tensor = self.network(functional.rms_norm(patches, patches.shape[-1:], eps=1e-6))
        return found


def add_film(model: OpenVLA, is_random: bool) -> None:
    """Give the towers FiLM that listens; `is_random`: the model's weights mean nothing yet."""
    model.vision_backbone.add_film(model.config.text.hidden_size)
    for name, parameter in model.named_parameters():
        if ".film." in name and name.endswith(".weight"):
            nn.init.normal_(parameter, std=FILM_STD)
    if is_random:
        nn.init.normal_(model.language_model.model.embed_tokens.weight)


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
    model: OpenVLA, prompts: list[Tensor], views: Views, stage: Descent, seed: int
) -> tuple[Pointer, list[float]]:
    """Train towers, projector and embeddings; `prompts` name the cubes in the order of `views`.

    Returns what reads places from patches now, and the loss of each update, in standard deviations
    of a coordinate. Raises NotFiniteError.
    """
    generator = np.random.default_rng([seed, 1])
    targets = scaled(views)
    pointer = Pointer(model.config.text.hidden_size)
    colours = len(prompts)

    def loss() -> Tensor:
        rows = generator.integers(0, len(views.images), PICTURES)
        pixels = normalised(torch.from_numpy(views.images[rows]).permute(0, 3, 1, 2), torch.float32)
        words = told(model, prompts).repeat(PICTURES, 1)  # (P·C, H)
        patches = model.encode(pixels.repeat_interleave(colours, 0), told=words)  # (P·C, N, H)
        cubes = targets[rows, :colours].flatten(0, 1)  # (P·C, 2)
        plate = targets[rows, colours].repeat_interleave(colours, 0)
        wanted = torch.cat([cubes, plate], dim=1)[:, None]
        found: Tensor = pointer(patches)
        return (found - wanted).abs().mean()

    model.requires_grad_(False)
    learning = parameters(model, but=LANGUAGE) + parameters(pointer)
    return pointer, descend(stage, [Group(learning)], loss)
