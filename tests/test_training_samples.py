"""What the model is shown in training is what it will see and say when it drives."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from crane_x7_vla_rl.data.loader import Batch, Batches, LoaderOptions
from crane_x7_vla_rl.data.source import open_source
from crane_x7_vla_rl.data.statistics import compute
from crane_x7_vla_rl.policies.openvla import loading
from crane_x7_vla_rl.policies.openvla.codec import Codec, Inputs
from crane_x7_vla_rl.policies.openvla.image import centre_crop
from crane_x7_vla_rl.training.augment import augment
from crane_x7_vla_rl.training.config import AugmentationConfig
from crane_x7_vla_rl.training.samples import lesson, squash
from crane_x7_vla_rl.training.schedule import learning_rate
from tests import training_rig as rig

BOTH = AugmentationConfig()
NEITHER = AugmentationConfig(crop=False, colour=0.0)
CROP = AugmentationConfig(crop=True, colour=0.0)
COLOUR = AugmentationConfig(crop=False, colour=1.0)


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 24, 24, generator=torch.Generator().manual_seed(0))


def test_the_rate_rises_in_a_line_and_falls_in_half_a_cosine() -> None:
    rates = [learning_rate(step, 100, 0.1, 5e-4) for step in range(100)]
    assert 0 < rates[0] < rates[9] < rates[10] == max(rates) == 5e-4
    assert np.allclose(np.diff(rates[:10]), 5e-4 / 11)
    assert rates[55] == pytest.approx(2.5e-4)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert 0 < rates[-1] < 1e-6
    assert learning_rate(0, 1, 0.0, 5e-4) == 5e-4


@pytest.mark.parametrize("settings", [BOTH, CROP, COLOUR])
def test_a_sample_varies_alike_in_any_batch_and_otherwise_at_any_other_place(
    settings: AugmentationConfig,
) -> None:
    shown = images(4)
    places = np.array([7, 8, 9, 10])
    together = augment(shown, 3, places, settings)
    alone = torch.cat([augment(shown[k : k + 1], 3, places[k : k + 1], settings) for k in range(4)])
    assert torch.equal(together, alone)
    same = augment(shown[:1].expand(4, -1, -1, -1), 3, places, settings)
    assert all(not torch.equal(same[0], same[k]) for k in range(1, 4))
    assert not torch.equal(together, augment(shown, 4, places, settings))
    assert together.min() >= 0
    assert together.max() <= 1


def test_without_augmentation_images_are_the_same() -> None:
    shown = images(2)
    assert augment(shown, 0, np.arange(2), NEITHER) is shown


def test_crops_are_ninety_percent_of_the_area_and_centred_on_average() -> None:
    size, count = 65, 400
    ramp = torch.linspace(0, 1, size)
    across, down = ramp.expand(size, size), ramp[:, None].expand(size, size)
    shown = torch.stack([across, down, across])
    cut = augment(shown.expand(count, -1, -1, -1), 0, np.arange(count), CROP)
    for channel, axis in ((0, 2), (1, 1)):
        line = cut[:, channel].mean(dim=axis % 2 + 1)  # (count, size), a ramp again
        assert torch.allclose(line[:, -1] - line[:, 0], torch.tensor(math.sqrt(0.9)), atol=1e-5)
        assert abs(float(line.mean()) - 0.5) < 0.005
        assert 0.02 < float(line.mean(1).max()) - 0.5 <= (1 - math.sqrt(0.9)) / 2
    middle = centre_crop((shown[None] * 255).to(torch.uint8)).float() / 255
    assert float((cut.mean(0) - middle[0]).abs().max()) < 0.01  # what the policy will see


def test_colours_change_within_their_ranges_and_the_order_of_pixels_stays() -> None:
    grey = torch.full((200, 3, 4, 4), 0.5)
    varied = augment(grey, 0, np.arange(200), COLOUR)
    assert torch.allclose(varied, varied[:, :1], atol=1e-3)  # grey has no hue and no saturation
    assert 0.3 - 1e-3 <= float(varied.min()) < 0.35
    assert 0.65 < float(varied.max()) <= 0.7 + 1e-3
    red = torch.tensor([0.8, 0.1, 0.1]).view(1, 3, 1, 1).expand(200, 3, 4, 4)
    turned = augment(red, 0, np.arange(200), COLOUR)
    assert bool((turned[:, 0] > turned[:, 1:].amax(1)).all()), "red must stay red"
    faint = augment(red, 0, np.arange(200), AugmentationConfig(crop=False, colour=0.1))
    assert float((faint - red).abs().max()) < 0.25 * float((turned - red).abs().max())


def first_batch(size: int) -> Batch:
    source = open_source(rig.data())
    with Batches(source, 4, 0, options=LoaderOptions(3, transform=squash(size))) as batches:
        return next(batches)


def codec(inputs: Inputs) -> Codec:
    loaded = loading.load(rig.base())
    statistics = compute(open_source(rig.data())).to_dict()
    return Codec.of(loaded.layout, loaded.model.norm_stats | statistics, "crane_x7", inputs)


@pytest.mark.parametrize("recorded", [rig.SIDE, 48])
def test_the_lesson_is_what_the_policy_will_be_asked(recorded: int) -> None:
    model = loading.load(rig.base()).model
    batch = first_batch(recorded)
    shown = np.stack([squash(rig.SIDE)(image, 0) for image in batch.images])
    batch = Batch(**{**vars(batch), "images": shown})
    speaks = codec(Inputs(state_tokens=True, chunk_steps=3))
    asked = lesson(batch, speaks, NEITHER, 0, model.projector.fc3.bias)
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


def test_squashing_in_the_loader_equals_what_the_policy_does() -> None:
    model = loading.load(rig.base()).model
    image = np.random.default_rng(0).integers(0, 255, (48, 60, 3), np.uint8)
    squashed = squash(rig.SIDE)(image, 5)
    assert torch.equal(model.preprocess([squashed]), model.preprocess([image]))
