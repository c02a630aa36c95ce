"""Random crops and colours for training images, the same for a sample however it is batched.

Images (B, 3, S, S) in 0…1 come in and leave so. What is drawn depends on the seed and the sample's
place in training alone: a resumed run, and one on other processes, sees the same pictures.

The ranges are OpenVLA's (`vla-scripts/finetune.py`, `image_aug`): crops of 90 % of the area,
brightness ± 0.2, contrast and saturation 0.8…1.2, hue ± 0.05 of the circle. Departures: saturation
and hue change in YIQ, where they are matrices, instead of HSV, and values are cut to 0…1 once, at
the end; so one matrix per image does everything.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from crane_x7_vla_rl.policies.openvla.image import CROP_SIDE
from crane_x7_vla_rl.training.config import AugmentationConfig

BRIGHTNESS: Final = 0.2
CONTRAST: Final = 0.2
SATURATION: Final = 0.2
HUE: Final = 0.05
"""Share of the colour circle."""
YIQ: Final = np.array(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
)
"""(3, 3) from RGB to luminance and chrominance (NTSC)."""

Matrix = npt.NDArray[np.float64]


def augment(
    images: Tensor, seed: int, places: npt.NDArray[np.int64], settings: AugmentationConfig
) -> Tensor:
    """Return (B, 3, S, S) in 0…1, varied as `settings` say; the same object where they say nothing.

    `places` (B,) are the samples' places in the sequence of all that is trained on, see `Batch`.
    """
    if not settings.crop and not settings.colour:
        return images
    draws = np.stack([np.random.default_rng([seed, place]).random(6) for place in places])
    if settings.crop:
        images = _crop(images, draws[:, :2])
    if settings.colour:
        images = _colour(images, 2 * draws[:, 2:] - 1, settings.colour)
    return images


def _crop(images: Tensor, corners: Matrix) -> Tensor:
    """Cut √0.9 of each side at `corners` (B, 2: x, y; 0…1 of the free way), stretch it back."""
    count, _, size, _ = images.shape
    low = torch.tensor(corners * (1 - CROP_SIDE), dtype=images.dtype, device=images.device)
    along = torch.linspace(0, CROP_SIDE, size, dtype=images.dtype, device=images.device)
    x, y = ((low[:, axis, None] + along) * 2 - 1 for axis in (0, 1))  # (B, S) in −1…1
    grid = torch.stack(
        [x[:, None].expand(count, size, size), y[:, :, None].expand(count, size, size)], dim=-1
    )
    return functional.grid_sample(images, grid, mode="bilinear", align_corners=True)


def _colour(images: Tensor, draws: Matrix, strength: float) -> Tensor:
    """Apply brightness, contrast, saturation, hue, each `draws` (B, 4) in −1…1 of its range."""
    ranges = np.array([BRIGHTNESS, CONTRAST, SATURATION, HUE]) * strength
    brightness, contrast, saturation, hue = (draws * ranges).T
    turned = np.stack([_chroma(1 + s, 2 * np.pi * h) for s, h in zip(saturation, hue, strict=True)])
    matrix = torch.tensor(turned).to(images)  # (B, 3, 3)
    gain = torch.tensor(1 + contrast).to(images)[:, None, None]
    lift = torch.tensor(brightness).to(images)[:, None, None]
    flat = images.flatten(2)  # (B, 3, S·S)
    offset = lift + (1 - gain) * flat.mean(2, keepdim=True)  # (B, 3, 1)
    varied = torch.baddbmm(matrix @ offset, matrix * gain, flat)
    return varied.clamp_(0, 1).view_as(images)


def _chroma(saturation: float, angle_rad: float) -> Matrix:
    """Return (3, 3) from RGB to RGB with the chrominance scaled and turned."""
    cos, sin = saturation * np.cos(angle_rad), saturation * np.sin(angle_rad)
    change = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    result: Matrix = np.linalg.inv(YIQ) @ change @ YIQ
    return result
