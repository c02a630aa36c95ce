"""Pictures get a policy's size, padding, layout, colours and values; and back."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from crane_x7_vla_rl import image_geometry
from crane_x7_vla_rl.image_geometry import Colour, ImageForm, Layout, Resize, Values, fit


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("how", get_args(Resize))
@pytest.mark.parametrize("size", [(224, 224), (320, 96), (7, 301), (1, 1)])
@pytest.mark.parametrize("camera", [(640, 480), (480, 640), (31, 17)])
def test_every_picture_gets_the_size(
    how: Resize, size: tuple[int, int], camera: tuple[int, int]
) -> None:
    assert fit(picture(*camera), size, how).shape == (size[1], size[0], 3)


def test_padding_is_black_and_centred() -> None:
    fitted = fit(picture(640, 480), (224, 224), "pad")
    rows = fitted.any(axis=(1, 2))
    assert not rows[:28].any()
    assert rows[28:196].all()
    assert not rows[196:].any()


def test_cropping_keeps_the_centre() -> None:
    image = np.zeros((480, 640, 3), np.uint8)
    image[:, 80:560] = 200
    assert (fit(image, (240, 240), "crop") == 200).all()


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    image = picture(96, 96)
    assert fit(image, (96, 96), "pad") is image


@pytest.mark.parametrize("layout", get_args(Layout))
@pytest.mark.parametrize("colour", get_args(Colour))
@pytest.mark.parametrize("values", get_args(Values))
def test_decoding_gives_back_the_encoded_picture(
    layout: Layout, colour: Colour, values: Values
) -> None:
    form, image = ImageForm(None, None, layout, colour, values), picture(8, 6)
    encoded = form.apply(image)
    assert encoded.shape == ((6, 8, 3) if layout == "hwc" else (3, 6, 8))
    if values != "uint8":
        assert encoded.dtype == np.float32
        assert encoded.max() == pytest.approx(image.max() / 127.5 - 1 if values == "-1..1"
                                              else image.max() / 255)  # fmt: skip
    np.testing.assert_array_equal(image_geometry.decode(encoded, form), image)


def test_another_shape_or_type_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"\(4, 4, 3\) float64, expected \(H, W, 3\) uint8"):
        image_geometry.decode(np.zeros((4, 4, 3)), ImageForm(None, None))
    form = ImageForm(None, None, "hwc", "rgb", "0..1")
    with pytest.raises(ValueError, match="NaN"):
        image_geometry.decode(np.full((4, 4, 3), np.nan), form)
