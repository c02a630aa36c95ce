"""From a batch of demonstrations to prompts for OpenVLA and the actions to learn.

`data.loader.Batch` → pixels, prompt ids and action tokens, made by the codec that the policy uses
when it drives an arm, so that training and rollouts see the same.
Legend: B batch, S pixels of a side, T steps of a chunk, 8 joints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from crane_x7_vla_rl.data.loader.batches import Batch
from crane_x7_vla_rl.policies.openvla.codec import Codec
from crane_x7_vla_rl.policies.openvla.image import View, cut_and_resize, normalised
from crane_x7_vla_rl.training.sft.augment import augment
from crane_x7_vla_rl.training.sft.config import AugmentationConfig
from crane_x7_vla_rl.types import Image


@dataclass(frozen=True, eq=False)
class ModelBatch:
    """A batch as the model takes it."""

    pixels: Tensor
    """(B, 6, S, S)."""
    prompts: list[Tensor]
    """B 1-D tensors of ids, the measured joints behind the text where the policy reads them."""
    tokens: Tensor
    """(B, T·8) int64, ids 31744…31999: the demonstrated action, step after step."""
    actions: npt.NDArray[np.float32]
    """(B, T, 8) rad, the same."""
    state: npt.NDArray[np.float32]
    """(B, 8) rad, measured."""


def image_transform(
    size: int, view: View, settings: AugmentationConfig, seed: int
) -> Callable[[Image, int], Image]:
    """Return what the loader's threads do to images: cut, resize to (size, size, 3), and vary.

    They are cut and resized as the policy does it.
    """

    def shown(image: Image, place: int) -> Image:
        return augment(cut_and_resize(image, view, size), seed, place, settings)

    return shown


def model_batch(batch: Batch, codec: Codec, like: Tensor) -> ModelBatch:
    """Return a batch of shown images, on the device and in the dtype of `like`.

    Images are normalised in float32, whatever the dtype.
    """
    images = torch.from_numpy(batch.images).to(like.device, non_blocking=True)  # (B, S, S, 3)
    return ModelBatch(
        normalised(images.permute(0, 3, 1, 2), like.dtype),
        codec.prompts(batch.instructions, batch.state),
        torch.from_numpy(codec.tokens(batch.actions)),
        batch.actions,
        batch.state,
    )
