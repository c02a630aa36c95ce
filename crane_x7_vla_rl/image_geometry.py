"""A camera's picture in the form that a policy takes. (H, W, 3) uint8 RGB → an array, and back.

The one code for size, padding, layout, colour order and value range: data sets, policy servers and
the loop use it, so that a policy sees in use what it saw in training. Shrinking averages areas
(`cv2.INTER_AREA`), enlarging is bilinear. Padding is black and centred, as in openpi and LeRobot;
another place of the picture costs a policy most of its success.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import cv2
import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.types import Image

Resize = Literal["stretch", "pad", "crop"]
Layout = Literal["hwc", "chw"]
Colour = Literal["rgb", "bgr"]
Values = Literal["uint8", "0..1", "-1..1"]
Size = tuple[int, int]
"""Width, height."""

RGB: Final[Colour] = "rgb"
HWC: Final[Layout] = "hwc"
UINT8: Final[Values] = "uint8"


@dataclass(frozen=True)
class ImageForm:
    """What a policy expects of a picture."""

    size: Size | None
    """None: as the camera sends it."""
    resize: Resize | None
    """How a picture gets another shape: stretched, padded with black, or cut. None without `size`:
    then nothing is resized."""
    layout: Layout = HWC
    colour: Colour = RGB
    values: Values = UINT8

    @property
    def is_plain(self) -> bool:
        """Whether it is an ordinary picture of bytes, which a JPEG can hold."""
        return (self.layout, self.colour, self.values) == (HWC, RGB, UINT8)

    def apply(self, image: Image) -> npt.NDArray[Any]:
        """Return the picture in this form: (H, W, 3) or (3, H, W), uint8 or float32."""
        if self.size is not None and self.resize is not None:
            image = fit(image, self.size, self.resize)
        return encode(image, self)


def fit(image: Image, size: Size, how: Resize) -> Image:
    """Return (height, width, 3) for a picture of any size.

    `stretch` ignores the shape; `pad` keeps all of the picture, centred on black; `crop` fills the
    size and cuts equal parts off both ends. The shorter side is rounded down, as openpi does.
    """
    width, height = size
    rows, columns = image.shape[:2]
    if (columns, rows) == (width, height):
        return image
    if how == "stretch":
        return _scaled(image, width, height)
    if how == "pad":
        scale = max(columns / width, rows / height)
        small = _scaled(image, max(int(columns / scale), 1), max(int(rows / scale), 1))
        padded = np.zeros((height, width, 3), np.uint8)
        top, left = (height - small.shape[0]) // 2, (width - small.shape[1]) // 2
        padded[top : top + small.shape[0], left : left + small.shape[1]] = small
        return padded
    scale = min(columns / width, rows / height)
    wide = max(round(columns / scale), width)
    high = max(round(rows / scale), height)
    big = _scaled(image, wide, high)
    top, left = (high - height) // 2, (wide - width) // 2
    return np.ascontiguousarray(big[top : top + height, left : left + width])


def encode(image: Image, form: ImageForm) -> npt.NDArray[Any]:
    """Return the picture with the form's colour order, layout and value range; its size stays."""
    found: npt.NDArray[Any] = image if form.colour == "rgb" else image[:, :, ::-1]
    if form.layout == "chw":
        found = found.transpose(2, 0, 1)
    if form.values == "0..1":
        found = found.astype(np.float32) / np.float32(255)
    elif form.values == "-1..1":
        found = found.astype(np.float32) / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(found)


def decode(array: npt.NDArray[Any], form: ImageForm) -> Image:
    """Return (H, W, 3) uint8 RGB for a picture in this form: the reverse of `encode`.

    Raises ValueError for another shape or type of number.
    """
    channels = 0 if form.layout == "chw" else 2
    wanted = np.uint8 if form.values == "uint8" else np.floating
    if array.ndim != 3 or array.shape[channels] != 3 or not np.issubdtype(array.dtype, wanted):
        shape = "(3, H, W)" if form.layout == "chw" else "(H, W, 3)"
        raise ValueError(f"image is {array.shape} {array.dtype}, expected {shape} {form.values}")
    found = array.transpose(1, 2, 0) if form.layout == "chw" else array
    if form.values != "uint8":
        if not np.isfinite(found).all():
            raise ValueError("image contains NaN or infinities")
        scaled = found * 255 if form.values == "0..1" else (found + 1) * 127.5
        found = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    if form.colour == "bgr":
        found = found[:, :, ::-1]
    return np.ascontiguousarray(found)


def _scaled(image: Image, width: int, height: int) -> Image:
    shrinks = width <= image.shape[1] and height <= image.shape[0]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    scaled: Image = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=how)
    return scaled
