"""Random crops and colours for training images, the same for a sample however it is batched.

Image (S, S, 3) uint8 → the same, varied, in the loader's threads. The variation depends on the seed
and the sample's place in training alone: a resumed run, and one on other processes, sees the same
pictures.

The ranges are OpenVLA's (`vla-scripts/finetune.py`, `image_aug`): crops of 90 % of the area,
brightness ± 0.2, contrast and saturation 0.8…1.2, hue ± 0.05 of the circle. Departures: saturation
and hue change in YIQ, where they are matrices, instead of HSV, and values are cut to 8 bits once,
at the end; so one matrix does everything to colours.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.policies.openvla.image import CROP_SIDE
from crane_x7_vla_rl.training.sft.config import AugmentationConfig
from crane_x7_vla_rl.types import Image

BRIGHTNESS: Final = 0.2
CONTRAST: Final = 0.2
SATURATION: Final = 0.2
HUE: Final = 0.05
"""Share of the colour circle."""
WHITE: Final = 255.0
YIQ: Final = np.array(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
)
"""(3, 3) from RGB to luminance and chrominance (NTSC)."""

Matrix = npt.NDArray[np.float64]


def augment(image: Image, seed: int, place: int, settings: AugmentationConfig) -> Image:
    """Return (S, S, 3) uint8, varied by `settings`; the same object if they change nothing.

    `place` is the sample's in the sequence of all that is trained on, see `data.loader.Batch`.
    """
    if not settings.crop and not settings.colour:
        return image
    draws = np.random.default_rng([seed, place]).random(6)
    if settings.crop:
        image = _crop(image, draws[:2])
    if settings.colour:
        image = _colour(image, 2 * draws[2:] - 1, settings.colour)
    return image


def _crop(image: Image, corner: Matrix) -> Image:
    """Cut √0.9 of each side at `corner` (x, y; 0…1 of the free way), and stretch it back."""
    size = image.shape[0]
    low = corner * (1 - CROP_SIDE) * (size - 1)
    place = np.array([[CROP_SIDE, 0, low[0]], [0, CROP_SIDE, low[1]]])  # from new to old pixels
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cut: Image = cv2.warpAffine(image, place, (size, size), flags=flags)
    return cut


def _colour(image: Image, draws: Matrix, strength: float) -> Image:
    """Apply brightness, contrast, saturation, hue, each `draws` (4,) in −1…1 of its range."""
    ranges = np.array([BRIGHTNESS, CONTRAST, SATURATION, HUE]) * strength
    brightness, contrast, saturation, hue = draws * ranges
    turned = _chroma(1 + saturation, 2 * np.pi * hue)
    mean = np.array(cv2.mean(image)[:3])
    offset = turned @ (brightness * WHITE - contrast * mean)
    affine = np.column_stack([turned * (1 + contrast), offset])  # (3, 4)
    varied: Image = cv2.transform(image, affine)
    return varied


def _chroma(saturation: float, angle_rad: float) -> Matrix:
    """Return (3, 3) from RGB to RGB with the chrominance scaled and turned."""
    cos, sin = saturation * np.cos(angle_rad), saturation * np.sin(angle_rad)
    change = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    result: Matrix = np.linalg.inv(YIQ) @ change @ YIQ
    return result
