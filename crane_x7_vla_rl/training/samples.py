"""From a batch of demonstrations to what OpenVLA is asked and what it should have answered.

A `data.loader.Batch` comes in; pixels, prompt ids and action tokens leave, made by the codec that
the policy uses when it drives an arm, so that what is trained is what is rolled out.
Legend: B batch, S pixels of a side, T steps of a chunk, 8 joints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image as Pil
from torch import Tensor

from crane_x7_vla_rl.data.loader import Batch
from crane_x7_vla_rl.policies.openvla.codec import Codec
from crane_x7_vla_rl.policies.openvla.image import MEAN, STD
from crane_x7_vla_rl.training.augment import augment
from crane_x7_vla_rl.training.config import AugmentationConfig
from crane_x7_vla_rl.types import Image


@dataclass(frozen=True, eq=False)
class Lesson:
    """A batch as the model takes it."""

    pixels: Tensor
    """(B, 6, S, S)."""
    prompts: list[Tensor]
    """B 1-D tensors of ids, the measured joints behind the text where the policy reads them."""
    tokens: Tensor
    """(B, T·8) int64, ids 31744…31999: the demonstrated answer, step after step."""


def squash(size: int) -> Callable[[Image, int], Image]:
    """Return what makes images (size, size, 3), in the loader's threads, as the policy does."""

    def squashed(image: Image, place: int) -> Image:
        del place  # the same for every sample
        if image.shape[:2] == (size, size):
            return image
        resized = Pil.fromarray(image).resize((size, size), Pil.Resampling.BICUBIC)
        return np.asarray(resized)

    return squashed


def lesson(
    batch: Batch, codec: Codec, settings: AugmentationConfig, seed: int, like: Tensor
) -> Lesson:
    """Return the lesson of a batch of squashed images, on the device and in the dtype of `like`.

    Images are varied and normalised in float32, whatever the dtype.
    """
    images = torch.from_numpy(batch.images).to(like.device, non_blocking=True)
    grey = images.permute(0, 3, 1, 2).to(torch.float32) / 255
    varied = augment(grey, seed, batch.places, settings)
    mean, std = (torch.tensor(v, device=like.device).view(1, 6, 1, 1) for v in (MEAN, STD))
    pixels = (varied.repeat(1, 2, 1, 1) - mean) / std
    return Lesson(
        pixels.to(like.dtype),
        codec.prompts(batch.instructions, batch.state),
        torch.from_numpy(codec.tokens(batch.actions)),
    )
