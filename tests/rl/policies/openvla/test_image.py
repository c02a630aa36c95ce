"""Images of every kind and size become pixel values, on the device as in PIL."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

from crane_x7_vla_rl.policies.openvla.errors import ImageError
from crane_x7_vla_rl.policies.openvla.image import Picture, centre_crop, pixel_values
from crane_x7_vla_rl.policies.openvla.resample import resize

CPU = torch.device("cpu")


def pixels(*images: Picture, crop: bool = False) -> Tensor:
    return pixel_values(images, device=CPU, dtype=torch.float32, crop=crop)


def noise(height: int, width: int, channels: int = 3) -> npt.NDArray[np.uint8]:
    """Return noise with rows and columns of extremes, on which bicubic overshoots most."""
    array = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    array[::2], array[:, ::3] = 255, 0
    return array


@pytest.mark.parametrize(
    "size",
    [(480, 640), (720, 1280), (256, 256), (224, 224), (1, 1), (3, 500), (100, 90), (223, 225)],
)
def test_the_devices_resize_equals_pils(size: tuple[int, int]) -> None:
    """It runs on CUDA only, but is the same products of whole numbers on the CPU."""
    array = noise(*size)
    small = Image.fromarray(array).resize((224, 224), Image.Resampling.BICUBIC)
    ours = resize(torch.from_numpy(array).permute(2, 0, 1), 224, 224)
    assert np.array_equal(ours.permute(1, 2, 0).numpy(), np.array(small))


@pytest.mark.gpu
def test_the_device_gives_the_cpus_pixels() -> None:
    image = noise(480, 640)
    on_device = pixel_values([image], device=torch.device("cuda"), dtype=torch.float32)
    assert float((on_device.cpu() - pixels(image)).abs().max()) <= 1e-6


def test_an_array_and_a_pil_image_give_the_same() -> None:
    array = noise(48, 64)
    assert torch.equal(pixels(array), pixels(Image.fromarray(array)))


def test_greyscale_fills_all_channels() -> None:
    grey = noise(48, 64, 1)
    as_rgb = pixels(np.repeat(grey, 3, axis=2))
    assert torch.equal(pixels(grey), as_rgb)
    assert torch.equal(pixels(grey[:, :, 0]), as_rgb)
    assert torch.equal(pixels(Image.fromarray(grey[:, :, 0])), as_rgb)


def test_alpha_is_dropped() -> None:
    rgba = noise(48, 64, 4)
    assert torch.equal(pixels(rgba), pixels(rgba[:, :, :3]))
    assert torch.equal(pixels(Image.fromarray(rgba)), pixels(rgba[:, :, :3]))


def test_one_pixel_fills_the_image() -> None:
    one = pixels(np.array([[[255, 0, 128]]], np.uint8))
    assert one.shape == (1, 6, 224, 224)
    assert torch.equal(one, one[:, :, :1, :1].expand_as(one))


def test_an_image_of_8000_by_6000_is_squashed() -> None:
    huge = np.zeros((6000, 8000, 3), np.uint8)
    huge[:, 4000:] = 255
    squashed = pixels(huge)
    assert squashed.shape == (1, 6, 224, 224)
    assert float(squashed[0, 3, 100, 10]) == -1.0
    assert float(squashed[0, 3, 100, 214]) == 1.0


def test_a_batch_may_mix_sizes_and_kinds() -> None:
    batch = pixels(noise(10, 20), noise(30, 5, 1), Image.new("RGBA", (7, 9)))
    assert batch.shape == (3, 6, 224, 224)
    assert torch.equal(batch[0], pixels(noise(10, 20))[0])


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32, expected uint8"),
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\) of uint8, expected"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"\(1, 4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\), expected pixels"),
        (Image.new("RGB", (0, 3)), "0×3, expected pixels"),
    ],
)
def test_what_is_no_image_is_refused(image: Picture, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        pixels(image)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ImageError, match="got no image"):
        pixels()


def test_the_crop_keeps_the_centre_root_of_nine_tenths() -> None:
    """On a ramp, the crop's edges hold the values at the box's corners."""
    ramp = torch.arange(224, dtype=torch.uint8).expand(1, 3, 224, 224)
    cropped = centre_crop(ramp)[0, 0]
    margin = (1 - 0.9**0.5) / 2 * 223
    assert int(cropped[0, 0]) == int(margin * 255.5 / 255)
    assert int(cropped[0, -1]) == int((223 - margin) * 255.5 / 255)
    assert torch.equal(cropped, cropped[:1].expand_as(cropped))


def test_the_crop_leaves_an_even_image_as_it_is() -> None:
    even = np.full((50, 60, 3), 77, np.uint8)
    assert torch.equal(pixels(even, crop=True), pixels(even))
    assert not torch.equal(pixels(noise(50, 60), crop=True), pixels(noise(50, 60)))
