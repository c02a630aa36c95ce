"""What the model is shown in training is what it will see and say when it drives."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import training_rig as rig

from crane_x7_vla_rl.data.loader.batches import Batch, Batches, LoaderOptions
from crane_x7_vla_rl.data.source import open_source
from crane_x7_vla_rl.data.statistics import compute_statistics
from crane_x7_vla_rl.policies.openvla.codec import Codec, PolicySpec
from crane_x7_vla_rl.policies.openvla.image import WHOLE, centre_crop, cut
from crane_x7_vla_rl.policies.openvla.weights import loading
from crane_x7_vla_rl.training.schedule import learning_rate
from crane_x7_vla_rl.training.sft.augment import augment
from crane_x7_vla_rl.training.sft.config import AugmentationConfig
from crane_x7_vla_rl.training.sft.samples import image_transform, model_batch
from crane_x7_vla_rl.types import Image

BOTH = AugmentationConfig()
NEITHER = AugmentationConfig(crop=False, colour=0.0)
CROP = AugmentationConfig(crop=True, colour=0.0)
COLOUR = AugmentationConfig(crop=False, colour=1.0)


def noise() -> Image:
    return np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)


def flat(*rgb: int) -> Image:
    return np.full((8, 8, 3), rgb, np.uint8)


def test_the_rate_rises_in_a_line_and_falls_in_half_a_cosine() -> None:
    rates = [learning_rate(step, 100, 0.1, 5e-4) for step in range(100)]
    assert 0 < rates[0] < rates[9] < rates[10] == max(rates) == 5e-4
    assert np.allclose(np.diff(rates[:10]), 5e-4 / 11)
    assert rates[55] == pytest.approx(2.5e-4)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert 0 < rates[-1] < 1e-6
    assert learning_rate(0, 1, 0.0, 5e-4) == 5e-4


@pytest.mark.parametrize("settings", [BOTH, CROP, COLOUR])
def test_a_sample_varies_alike_whenever_and_otherwise_at_any_other_place(
    settings: AugmentationConfig,
) -> None:
    image = noise()
    shown = [augment(image, 3, place, settings) for place in range(20)]
    again = [augment(image, 3, place, settings) for place in reversed(range(20))]
    assert all(np.array_equal(a, b) for a, b in zip(shown, reversed(again), strict=True))
    assert len({each.tobytes() for each in shown}) == 20
    assert not np.array_equal(shown[0], augment(image, 4, 0, settings))
    assert np.array_equal(image, noise()), "the recording itself was changed"


def test_without_augmentation_images_are_the_same() -> None:
    image = noise()
    assert augment(image, 0, 0, NEITHER) is image


def test_crops_are_ninety_percent_of_the_area_and_centred_on_average() -> None:
    size, count = 101, 400
    ramp = np.linspace(0, 200, size)
    image = np.stack(np.broadcast_arrays(ramp[None], ramp[:, None], 100.0), -1).astype(np.uint8)
    cut = np.stack([augment(image, 0, place, CROP) for place in range(count)]).astype(np.float64)
    for channel, axis in ((0, 1), (1, 2)):
        lines = cut[..., channel].mean(axis)  # (count, size), ramps again
        assert np.allclose(lines[:, -1] - lines[:, 0], 200 * math.sqrt(0.9), atol=3)
        moved = lines.mean(1) - image[..., channel].mean()
        assert abs(moved.mean()) < 1
        furthest = 200 * (1 - math.sqrt(0.9)) / 2
        assert 0.8 * furthest < np.abs(moved).max() < furthest + 1.5
    seen = centre_crop(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    assert np.abs(cut.mean(0) - seen).max() < 2  # what the policy will see, but for rounding


def test_colours_change_within_their_ranges_and_stay_what_they_are_called() -> None:
    greys = np.stack([augment(flat(128, 128, 128), 0, place, COLOUR) for place in range(300)])
    assert int(np.ptp(greys.astype(int), axis=-1).max()) <= 1  # grey has no hue, no saturation
    assert 128 - 52 <= greys.min() < 128 - 40
    assert 128 + 40 < greys.max() <= 128 + 52
    red = flat(200, 30, 30)
    reds = np.stack([augment(red, 0, place, COLOUR) for place in range(300)]).astype(int)
    assert bool((reds[..., 0] > 2 * reds[..., 1:].max(-1)).mean() > 0.9)
    assert bool((reds[..., 0] > reds[..., 1:].max(-1) + 50).all())
    faint = AugmentationConfig(crop=False, colour=0.1)
    faints = np.stack([augment(red, 0, place, faint) for place in range(300)]).astype(int)
    assert np.abs(faints - red).max() < 0.2 * np.abs(reds - red).max()


def first_batch(size: int) -> Batch:
    source = open_source(rig.data())
    with Batches(
        source, 4, 0, options=LoaderOptions(3, transform=image_transform(size, WHOLE, NEITHER, 0))
    ) as batches:
        return next(batches)


def codec(inputs: PolicySpec) -> Codec:
    loaded = loading.load(rig.base())
    statistics = compute_statistics(open_source(rig.data())).to_dict()
    return Codec.of(loaded.layout, loaded.model.norm_stats | statistics, "crane_x7", inputs)


@pytest.mark.parametrize("recorded", [rig.SIDE, 48])
def test_the_lesson_is_what_the_policy_will_be_asked(recorded: int) -> None:
    model = loading.load(rig.base()).model
    batch = first_batch(recorded)
    shown = np.stack(
        [image_transform(rig.SIDE, WHOLE, NEITHER, 0)(image, 0) for image in batch.images]
    )
    batch = Batch(**{**vars(batch), "images": shown})
    speaks = codec(PolicySpec(state_tokens=True, chunk_steps=3))
    asked = model_batch(batch, speaks, model.projector.fc3.bias)
    if recorded == rig.SIDE:
        assert torch.equal(asked.pixels, model.preprocess(list(batch.images)))
    assert asked.pixels.shape == (4, 6, rig.SIDE, rig.SIDE)
    assert asked.tokens.shape == (4, 24)
    for prompt, wanted in zip(
        asked.prompts, speaks.prompts(batch.instructions, batch.state), strict=True
    ):
        assert torch.equal(prompt, wanted)
    spans = speaks.action.high - speaks.action.low
    error = np.abs(speaks.actions(asked.tokens) - batch.actions) / spans
    inside = (batch.actions >= speaks.action.low) & (batch.actions <= speaks.action.high)
    assert float(error[inside].max()) <= 1 / 254


def test_training_sees_the_same_part_of_an_image_as_the_policy() -> None:
    view = (0.25, 0.5, 0.75, 1.0)
    model = loading.load(rig.base()).model
    image = np.random.default_rng(0).integers(0, 255, (48, 60, 3), np.uint8)
    part = image_transform(rig.SIDE, view, NEITHER, 0)(image, 5)
    assert torch.equal(model.preprocess([part]), model.preprocess([image[24:48, 15:45]]))
    assert np.array_equal(cut(image, view), image[24:48, 15:45])


def test_squashing_in_the_loader_equals_what_the_policy_does() -> None:
    model = loading.load(rig.base()).model
    image = np.random.default_rng(0).integers(0, 255, (48, 60, 3), np.uint8)
    squashed = image_transform(rig.SIDE, WHOLE, NEITHER, 0)(image, 5)
    assert torch.equal(model.preprocess([squashed]), model.preprocess([image]))
