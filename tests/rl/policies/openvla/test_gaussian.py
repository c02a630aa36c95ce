"""OpenVLA-OFT's head as a Gaussian: its densities, what is drawn from it, and what drives."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import oft_rig
import openvla_rig
import pytest
import torch

from crane_x7_vla_rl.policies.base import ModelOptions, NotFiniteError
from crane_x7_vla_rl.policies.load import load_policy
from crane_x7_vla_rl.policies.openvla.codec import PolicySpec
from crane_x7_vla_rl.policies.openvla.errors import CheckpointError
from crane_x7_vla_rl.policies.openvla.run import gaussian
from crane_x7_vla_rl.policies.openvla.run.gaussian import GaussianRunner, Noise
from crane_x7_vla_rl.policies.openvla.run.oft import ChunkSettings, load_oft
from crane_x7_vla_rl.policies.openvla.run.rollout import Sampling
from crane_x7_vla_rl.robot import HOME_RAD
from crane_x7_vla_rl.types import JointState, Observation

WIDTH = 0.1


def runner(folder: Path, correlation: float = 0.0) -> GaussianRunner:
    policy = load_oft(oft_rig.write(folder), settings=ChunkSettings(oft_rig.STEPS))
    return GaussianRunner(policy, oft_rig.KEY, Noise(WIDTH, correlation))


def question(padded: bool = False) -> tuple[torch.Tensor, list[torch.Tensor]]:
    prompts = list(openvla_rig.prompts()[:2])
    if not padded:
        prompts[1] = prompts[0]
    return openvla_rig.expected()["pixel_values"][:2], prompts


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_density_and_entropy_are_those_of_a_normal_distribution(correlation: float) -> None:
    draw = torch.Generator().manual_seed(0)
    actions, mean = torch.randn(2, 3, 5, 2, generator=draw, dtype=torch.float64)  # (B, T, D)
    apart = (torch.arange(5)[:, None] - torch.arange(5)).abs()
    covariance = 0.3**2 * torch.tensor(correlation, dtype=torch.float64) ** apart  # (T, T)
    noise = Noise(0.3, correlation)
    found, entropy = noise.log_density(actions, mean), noise.entropy(mean)
    assert found.shape == entropy.shape == mean.shape
    for dim in range(2):
        normal = torch.distributions.MultivariateNormal(mean[:, :, dim], covariance)
        for first in range(1, 6):  # a prefix, too: of a chunk whose last steps are not executed
            part = torch.distributions.MultivariateNormal(
                mean[:, :first, dim], covariance[:first, :first]
            )
            torch.testing.assert_close(
                found[:, :first, dim].sum(1), part.log_prob(actions[:, :first, dim])
            )
        torch.testing.assert_close(entropy[:, :, dim].sum(1), normal.entropy())


@pytest.mark.parametrize(
    "noise", [Noise(width) for width in (0.0, -1.0, float("inf"), float("nan"))]
    + [Noise(0.1, correlation) for correlation in (-0.1, 1.0, float("nan"))]
)  # fmt: skip
def test_noise_without_a_density_is_refused(noise: Noise) -> None:
    with pytest.raises(ValueError, match=r"deviation is .* and correlation"):
        noise.log_density(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_noise_has_the_same_width_at_each_step_and_its_correlation(correlation: float) -> None:
    white = torch.randn(20_000, 6, 2, generator=torch.Generator().manual_seed(0))
    drawn = Noise(0.3, correlation).of(white)
    torch.testing.assert_close(drawn.std(0), torch.full((6, 2), 0.3), rtol=0.03, atol=0)
    for dim in range(2):
        found = torch.corrcoef(drawn[:, :, dim].T)
        apart = (torch.arange(6)[:, None] - torch.arange(6)).abs()
        torch.testing.assert_close(found, correlation**apart * 1.0, rtol=0, atol=0.03)
    assert abs(float(torch.corrcoef(drawn[:, 0].T)[0, 1])) < 0.03, "dimensions are independent"


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("temperature", "correlation"), [(1.0, 0.0), (0.25, 0.0), (1.0, 0.9)])
def test_an_update_sees_the_densities_of_the_rollout(
    tmp_path: Path, padded: bool, temperature: float, correlation: float
) -> None:
    sampler, (pixels, prompts) = runner(tmp_path / "oft", correlation), question(padded)
    state = sampler.state(np.tile(HOME_RAD, (2, 1)))
    chosen = sampler.roll_out(pixels, prompts, state, Sampling(temperature))
    policy = sampler.policy
    noise = sampler.noise.at(temperature)
    found = gaussian.evaluate_gaussian(
        policy.base, (policy.head, policy.proprio), pixels, prompts, state, chosen.tokens, noise
    )
    assert found.log_probs.requires_grad
    torch.testing.assert_close(found.log_probs, chosen.log_probs, rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(found.hidden, chosen.hidden, rtol=1e-4, atol=1e-4)
    assert found.entropy.shape == found.log_probs.shape
    first = 0.5 * math.log(2 * math.pi * math.e) + math.log(WIDTH * math.sqrt(temperature))
    assert float(found.entropy.detach()[0, 0]) == pytest.approx(first)


def test_what_is_drawn_lies_around_what_the_head_says(tmp_path: Path) -> None:
    sampler, (pixels, prompts) = runner(tmp_path / "oft"), question()
    state = sampler.state(np.tile(HOME_RAD, (2, 1)))
    said = sampler.policy.predict_normalised(pixels, prompts, state).flatten(1)
    greedy = sampler.roll_out(pixels, prompts, state, Sampling())
    torch.testing.assert_close(greedy.tokens, said)
    draw = torch.Generator().manual_seed(0)
    away = torch.stack(
        [sampler.roll_out(pixels, prompts, state, Sampling(1.0, draw)).tokens - said
         for _ in range(100)]
    )  # fmt: skip
    assert float(away.std()) == pytest.approx(WIDTH, rel=0.05)
    assert float(away.mean().abs()) < 0.01
    cold = sampler.roll_out(pixels, prompts, state, Sampling(0.25, draw.manual_seed(0))).tokens
    torch.testing.assert_close(cold - said, away[0] / 2)


def test_each_sample_can_have_its_own_generator(tmp_path: Path) -> None:
    sampler, (pixels, prompts) = runner(tmp_path / "oft"), question()
    state = sampler.state(np.tile(HOME_RAD, (2, 1)))
    both = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    together = sampler.roll_out(pixels, prompts, state, Sampling(1.0, both)).tokens
    own = [torch.Generator().manual_seed(2)]
    alone = sampler.roll_out(pixels[1:], prompts[1:], state[1:], Sampling(1.0, own)).tokens
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)


def test_weights_that_are_nan_are_named(tmp_path: Path) -> None:
    sampler, (pixels, prompts) = runner(tmp_path / "oft"), question()
    torch.nn.init.constant_(sampler.policy.head.model.fc2.bias, float("nan"))
    state = sampler.state(np.tile(HOME_RAD, (2, 1)))
    with pytest.raises(NotFiniteError, match=r"fc2\.bias"):
        sampler.roll_out(pixels, prompts, state, Sampling(1.0))


def test_a_head_that_reads_no_joints_gets_none(tmp_path: Path) -> None:
    folder = oft_rig.write(tmp_path / "oft")
    (folder / "proprio_projector--150000_checkpoint.pt").unlink()
    policy = load_oft(folder, settings=ChunkSettings(oft_rig.STEPS))
    sampler, (pixels, prompts) = GaussianRunner(policy, oft_rig.KEY, Noise(WIDTH)), question()
    state = sampler.state(np.tile(HOME_RAD, (2, 1)))
    assert state.shape == (2, 0)
    found = sampler.roll_out(pixels, prompts, state, Sampling(1.0))
    assert found.tokens.shape == (2, oft_rig.STEPS * oft_rig.ACTION_DIM)


# --- what drives ----------------------------------------------------------------------------------


def policy(folder: Path, temperature: float, seed: int = 0) -> object:
    return load_policy(
        "openvla",
        ModelOptions(str(folder), unnorm_key=oft_rig.KEY, temperature=temperature, seed=seed),
    )


def drive(folder: Path, temperature: float, seed: int = 0) -> np.ndarray:
    image = np.full((48, 64, 3), 90, np.uint8)
    joints = HOME_RAD + np.array([0.3, 0.4, 0.2, 0.3, -0.1, -0.2, 0.1, 0.2])
    seen = Observation(image, JointState(joints, np.zeros(8)), "pick up the red cube", 0.0)
    driver = policy(folder, temperature, seed)
    first, second = (driver.predict([seen])[0].position_rad for _ in range(2))  # type: ignore[attr-defined]
    driver.reset()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(driver.predict([seen])[0].position_rad, first)  # type: ignore[attr-defined]
    return np.stack([first, second])


def test_a_temperature_draws_as_it_was_reinforced_and_a_reset_draws_the_same(
    tmp_path: Path,
) -> None:
    folder = oft_rig.write_for_arm(tmp_path / "oft")
    PolicySpec(chunk_steps=oft_rig.STEPS).write(folder)
    assert "action_std" not in json.loads((folder / "policy.json").read_text())
    plain = drive(folder, 1.0)
    np.testing.assert_array_equal(plain[0], plain[1])  # it was never reinforced: nothing to draw
    PolicySpec(chunk_steps=oft_rig.STEPS, action_std=0.1, action_correlation=0.9).write(folder)
    np.testing.assert_array_equal(drive(folder, 0.0), plain)
    drawn = drive(folder, 1.0)
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-5
    assert np.abs(drawn[0] - drive(folder, 1.0, seed=1)[0]).max() > 1e-5


def test_a_checkpoint_says_how_its_noise_is_correlated(tmp_path: Path) -> None:
    folder = oft_rig.write_for_arm(tmp_path / "oft")
    ways = []
    for correlation in (0.0, 0.99):
        PolicySpec(
            chunk_steps=oft_rig.STEPS, action_std=0.1, action_correlation=correlation
        ).write(folder)  # fmt: skip
        ways.append(drive(folder, 1.0)[0] - drive(folder, 0.0)[0])
    assert len(ways[0]) > 1
    # Actions are steps of the hand here, so that noise that stays moves it evenly.
    white, even = (np.abs(np.diff(way, n=2, axis=0)).mean() for way in ways)
    assert even < white / 3


@pytest.mark.parametrize("wrong", [-0.1, "wide", True, None, 1])
def test_a_correlation_that_is_none_is_refused(wrong: object) -> None:
    with pytest.raises(CheckpointError, match=r"action_correlation is .*expected 0 to below 1"):
        PolicySpec.from_dict({"action_correlation": wrong})


@pytest.mark.parametrize("wrong", [-0.1, "wide", True, None, 11])
def test_a_deviation_that_is_none_is_refused(wrong: object) -> None:
    with pytest.raises(CheckpointError, match=r"action_std is .*expected 0 to 10"):
        PolicySpec.from_dict({"action_std": wrong})
