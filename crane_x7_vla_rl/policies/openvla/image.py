"""Camera images → the 6-channel pixel values of the towers, as a tensor.

RGB, resized to the model's size (224 × 224 in the released one) with PIL's bicubic, optionally
centre-cropped as OpenVLA's evaluation does after training with random crops, scaled to 0…1 and
normalised twice: channels 0–2 for DINOv2, 3–5 for SigLIP. On CUDA the resize runs on the device
(see `resample`), elsewhere in PIL, which is faster there. Images are PIL images or arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from crane_x7_vla_rl.policies.openvla.errors import ImageError
from crane_x7_vla_rl.policies.openvla.resample import resize

Array = npt.NDArray[np.uint8]
Picture = Image.Image | Array
Pixels = TypeVar("Pixels", Array, Tensor)

IMAGE_SIZE: Final = 224
"""Pixels of each side in the released model."""
MEAN: Final = (0.484375, 0.455078125, 0.40625, 0.5, 0.5, 0.5)
"""Means of ImageNet, rounded to bfloat16 as in the released processor, then of SigLIP."""
STD: Final = (0.228515625, 0.2236328125, 0.224609375, 0.5, 0.5, 0.5)
CROP_SIDE: Final = 0.9**0.5
"""Share of each side that is kept: random crops kept 90 % of the area."""
CHANNELS: Final = ((), (1,), (3,), (4,))
View = tuple[float, float, float, float]
"""Left, top, right, bottom in shares of width and height."""
WHOLE: Final[View] = (0.0, 0.0, 1.0, 1.0)
MAX_DEVICE_PIXELS: Final = 4_000_000
"""Larger images would take over 200 MB on the device in float64; PIL resizes those."""


def pixel_values(
    images: Sequence[Picture],
    *,
    device: torch.device,
    dtype: torch.dtype,
    crop: bool = False,
    size: int = IMAGE_SIZE,
) -> Tensor:
    """Return (B, 6, size, size) for RGB, greyscale or RGBA images of any size; alpha is dropped.

    `crop` keeps the centre's √0.9 of each side. Raises ImageError for an empty batch, an image
    without pixels or an array that is not uint8 of shape (H, W), (H, W, 1), (H, W, 3), (H, W, 4).
    """
    if not images:
        raise ImageError("got no image, expected at least one")
    resized = torch.stack([_resize(_rgb(image), size, device) for image in images])
    return normalised(resized, dtype, crop)


def normalised(resized: Tensor, dtype: torch.dtype, crop: bool = False) -> Tensor:
    """Return (B, 6, S, S) for images (B, 3, S, S) uint8 of the model's size."""
    if crop:
        resized = centre_crop(resized)
    scaled = resized.to(torch.float32) / 255
    mean, std = _normalisation(resized.device)
    return ((scaled.repeat(1, 2, 1, 1) - mean) / std).to(dtype)


def cut(image: Pixels, view: View) -> Pixels:
    """Return the part of an image (H, W, 3) inside `view`, the same memory.

    Edges fall on the nearest pixels, and at least one pixel remains.
    """
    height, width = image.shape[:2]
    left, top, right, bottom = view
    x, y = round(left * width), round(top * height)
    return image[y : max(round(bottom * height), y + 1), x : max(round(right * width), x + 1)]


def cut_and_resize(image: Array, view: View, size: int) -> Array:
    """Return (size, size, 3): the part of an image (H, W, 3) inside `view`, resized by PIL."""
    part = cut(image, view)
    if part.shape[:2] == (size, size):
        return part
    return np.asarray(Image.fromarray(part).resize((size, size), Image.Resampling.BICUBIC))


def crop_and_resize(images: Array | Tensor, view: View, into: Tensor) -> None:
    """Write images (n, H, W, 3) uint8, cut to `view`, into (n, S, S, 3), as the policy does.

    Images are arrays or tensors; those on CUDA are resized on the device.
    """
    side = into.shape[1]
    if into.is_cuda:
        rows = torch.as_tensor(images)
        if not rows.is_cuda:  # a copy from unpinned memory would wait for all enqueued work
            rows = rows.pin_memory().to(into.device, non_blocking=True)
        part = cut(rows.permute(1, 2, 0, 3), view).permute(2, 0, 1, 3)  # (n, height, width, 3)
        if part.shape[1:3] != (side, side):
            flat = part.permute(0, 3, 1, 2).flatten(0, 1)
            part = resize(flat, side, side).view(len(into), 3, side, side).permute(0, 2, 3, 1)
        into.copy_(part)
        return
    found = images.cpu().numpy() if isinstance(images, Tensor) else images
    target = into.numpy()
    for row, image in enumerate(found):
        target[row] = cut_and_resize(image, view, side)


def centre_crop(resized: Tensor) -> Tensor:
    """Return (B, 3, S, S) uint8: the centre's √0.9 of each side, stretched back bilinearly.

    Corners of the box fall on pixel centres and values are cut, not rounded, to 8 bits, as
    TensorFlow's `crop_and_resize` and `convert_image_dtype` do in OpenVLA's evaluation.
    """
    size = resized.shape[-1]
    low, high, share = _crop_samples(size, resized.device)
    grey = resized.to(torch.float32) / 255
    rows = grey[:, :, low] + (grey[:, :, high] - grey[:, :, low]) * share[:, None]
    both = rows[..., low] + (rows[..., high] - rows[..., low]) * share
    return (both.clamp(0, 1) * 255.5).to(torch.uint8)


@lru_cache(maxsize=8)
def _crop_samples(size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return lower neighbour, upper neighbour and the upper's share, each (size,)."""
    margin = (1 - CROP_SIDE) / 2
    at = torch.linspace(margin * (size - 1), (1 - margin) * (size - 1), size, dtype=torch.float64)
    low = at.floor()
    share = (at - low).to(torch.float32)
    high = at.ceil()
    return low.long().to(device), high.long().to(device), share.to(device)


@lru_cache(maxsize=8)
def _normalisation(device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values).view(1, 6, 1, 1).to(device) for values in (MEAN, STD))
    return mean, std


def _rgb(image: Picture) -> Image.Image:
    found = image if isinstance(image, Image.Image) else _from_array(np.asarray(image))
    if 0 in found.size:
        raise ImageError(f"image is {found.size[0]}×{found.size[1]}, expected pixels")
    return found if found.mode == "RGB" else found.convert("RGB")


def _from_array(array: npt.NDArray[np.generic]) -> Image.Image:
    shape = array.shape
    if array.dtype != np.uint8 or len(shape) not in (2, 3) or shape[2:] not in CHANNELS:
        raise ImageError(
            f"image is an array {shape} of {array.dtype}, expected uint8 of (height, width) with"
            " 1, 3 (RGB) or 4 (RGBA) channels"
        )
    if 0 in shape:
        raise ImageError(f"image is an array {shape}, expected pixels")
    if shape[2:] == (1,):
        array = array[:, :, 0]
    elif shape[2:] == (4,):
        array = array[:, :, :3]
    return Image.fromarray(np.ascontiguousarray(array))


def _resize(image: Image.Image, size: int, device: torch.device) -> Tensor:
    """Return (3, size, size) uint8 on the device."""
    if device.type == "cuda" and image.width * image.height <= MAX_DEVICE_PIXELS:
        pixels = torch.from_numpy(np.array(image)).to(device)
        return resize(pixels.permute(2, 0, 1), size, size)
    small = image.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).to(device)
