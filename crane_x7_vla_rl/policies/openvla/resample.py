"""PIL's bicubic resize as two matrix products, for a GPU. An image → the same pixels as PIL's.

PIL resizes 8-bit images along the width, rounds to 8 bits, then along the height, with weights
rounded to 22 bits (`libImaging/Resample.c`). Products of such integers are exact in float64.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
import torch
from torch import Tensor

WEIGHT_ONE: Final = 1 << 22
"""Pillow's fixed-point 1: 32 bits less 8 of a pixel less 2 of headroom."""
SUPPORT: Final = 2.0
"""Pixels that the bicubic kernel spans on each side at scale 1."""


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Return (C, height, width) uint8 for (C, H, W) uint8, equal to PIL's BICUBIC."""
    rows, columns = image.shape[1:]
    wide = _round(image.double() @ _weights(columns, width, image.device).T)
    return _round(_weights(rows, height, image.device) @ wide).to(torch.uint8)


def _round(sums: Tensor) -> Tensor:
    """Return whole grey levels 0…255, still as float64."""
    return torch.floor((sums + WEIGHT_ONE // 2) / WEIGHT_ONE).clamp_(0, 255)


@lru_cache(maxsize=8)
def _weights(source: int, target: int, device: torch.device) -> Tensor:
    """Return (target, source) float64, whole multiples of 1 / WEIGHT_ONE times WEIGHT_ONE."""
    scale = source / target
    stretch = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    first = np.maximum((centres - SUPPORT * stretch + 0.5).astype(np.int64), 0)
    end = np.minimum((centres + SUPPORT * stretch + 0.5).astype(np.int64), source)
    index = np.arange(source)
    reach = np.abs((index[None] - centres[:, None] + 0.5) / stretch)
    near = (1.5 * reach - 2.5) * reach * reach + 1
    far = ((-0.5 * reach + 2.5) * reach - 4) * reach + 2
    weights = np.where(reach < 1, near, np.where(reach < SUPPORT, far, 0.0))
    weights[(index[None] < first[:, None]) | (index[None] >= end[:, None])] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    whole = np.trunc(weights * WEIGHT_ONE + np.where(weights < 0, -0.5, 0.5))
    return torch.from_numpy(whole).to(device)
