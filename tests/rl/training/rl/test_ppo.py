"""PPO's arithmetic against naive float64 computations; names carry the docstring's numbers."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from crane_x7_vla_rl.fields import leaves
from crane_x7_vla_rl.training.config import loader
from crane_x7_vla_rl.training.config.loader import Layer
from crane_x7_vla_rl.training.errors import ConfigError, PpoError
from crane_x7_vla_rl.training.rl import ppo
from crane_x7_vla_rl.training.rl.grpo import group_advantages
from crane_x7_vla_rl.training.rl.ppo import OldSamples, PolicyOutput
from crane_x7_vla_rl.training.rl.ppo_config import PpoConfig, ValueConfig

GAMMA, LAM = 0.97, 0.9
Floats = npt.NDArray[np.float64]


def rollout(seed: int, steps: int = 7, environments: int = 5) -> list[Tensor]:
    """Return rewards, values, next values, terminated, ended, valid."""
    draw = np.random.default_rng(seed)
    shape = (steps, environments)
    values, rewards, final = (torch.from_numpy(draw.normal(size=shape)) for _ in range(3))
    terminated = torch.from_numpy(draw.random(shape) < 0.2)
    truncated = torch.from_numpy(draw.random(shape) < 0.2) & ~terminated
    valid = torch.from_numpy(draw.random(shape) < 0.85)
    last = torch.from_numpy(draw.normal(size=environments))
    ahead = ppo.next_values(values, last, truncated, final)
    return [rewards, values, ahead, terminated, terminated | truncated, valid]


def naive_advantage(given: list[Tensor], step: int, environment: int) -> float:
    """Sum (γλ)^k δ forward from one step, as the formula says."""
    column = [x[:, environment].tolist() for x in given]
    rewards, values, ahead, terminated, ended, valid = column
    total, share = 0.0, 1.0
    for t in range(step, len(rewards)):
        if not valid[t]:
            break
        bootstrap = 0.0 if terminated[t] else ahead[t]
        total += share * (rewards[t] + GAMMA * bootstrap - values[t])
        if ended[t]:
            break
        share *= GAMMA * LAM
    return total


@pytest.mark.parametrize("seed", range(4))
def test_01_advantages_equal_the_naive_sum(seed: int) -> None:
    given = rollout(seed)
    advantages, _ = ppo.gae(*given, GAMMA, LAM)
    wanted = [[naive_advantage(given, t, n) for n in range(5)] for t in range(7)]
    assert torch.allclose(advantages, torch.tensor(wanted, dtype=torch.float64), atol=1e-12)


def one_episode(terminated: bool) -> tuple[Tensor, Tensor]:
    """Return advantages and returns, (3, 1): an episode of two steps, 9 its last view's value."""
    values = torch.tensor([[1.0], [2.0], [4.0]])
    ended = torch.tensor([[False], [True], [False]])
    ahead = ppo.next_values(values, torch.tensor([8.0]), ended, torch.full((3, 1), 9.0))
    return ppo.gae(
        torch.zeros(3, 1),
        values,
        ahead,
        ended & terminated,
        ended,
        torch.ones_like(ended),
        0.5,
        1.0,
    )


def test_02_truncation_is_worth_its_final_observation_and_termination_nothing() -> None:
    truncated, terminated = one_episode(False)[0], one_episode(True)[0]
    assert truncated[1].item() == 0.5 * 9 - 2
    assert terminated[1].item() == -2
    assert truncated[0].item() == (0.5 * 2 - 1) + 0.5 * truncated[1].item()
    assert truncated[2].item() == terminated[2].item() == 0.5 * 8 - 4


def test_03_discarded_steps_leak_nowhere_even_if_they_are_not_numbers() -> None:
    given = rollout(5)
    advantages, returns = ppo.gae(*given, GAMMA, LAM)
    valid = given[5]
    assert bool((~valid).any())
    assert not bool(advantages[~valid].any())
    assert not bool(returns[~valid].any())
    for index in (0, 1, 2):
        given[index] = torch.where(valid, given[index], torch.nan)
    again, _ = ppo.gae(*given, GAMMA, LAM)
    assert torch.equal(again, advantages)


def test_04_returns_are_advantages_and_values() -> None:
    given = rollout(6)
    advantages, returns = ppo.gae(*given, GAMMA, LAM)
    assert torch.equal(returns[given[5]], (advantages + given[1])[given[5]])


def test_gae_refuses_other_shapes_and_ends_that_do_not_end() -> None:
    given = rollout(0)
    with pytest.raises(PpoError, match=r"\(6, 5\).*expected \(T, N\)"):
        ppo.gae(given[0][:6], *given[1:], GAMMA, LAM)
    never = torch.zeros_like(given[4])
    with pytest.raises(PpoError, match="terminated but did not end"):
        ppo.gae(*given[:4], never, given[5], GAMMA, LAM)


def test_05_advantages_are_normalised_over_all_parts_together() -> None:
    advantages, valid = torch.randn(6, 4) * 3 + 7, torch.rand(6, 4) < 0.7
    total = ppo.moments(advantages[:, :1], valid[:, :1]) + ppo.moments(
        advantages[:, 1:], valid[:, 1:]
    )
    found = ppo.normalise(advantages, valid, total)
    known = advantages[valid]
    wanted = (known - known.mean()) / known.std(correction=0)
    assert torch.allclose(found[valid], wanted, atol=1e-5)
    assert not bool(found[~valid].any())
    alike = torch.full((2, 2), 3.0)
    everywhere = torch.ones(2, 2, dtype=torch.bool)
    assert not bool(ppo.normalise(alike, everywhere, ppo.moments(alike, everywhere)).any())


def samples(seed: int = 0, batch: int = 9, tokens: int = 5) -> tuple[PolicyOutput, OldSamples]:
    """Return what was taken and is judged, float64, one sample of weight 0, tokens left out."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    old = -normal(batch, tokens).abs() - 1
    weights = torch.rand(batch, generator=draw, dtype=torch.float64)
    weights[3] = 0
    action_mask = torch.rand(batch, tokens, generator=draw) < 0.8
    action_mask[2] = False
    taken = OldSamples(
        log_probs=old,
        advantages=normal(batch) * 2,
        values=normal(batch),
        returns=normal(batch),
        weights=weights,
        action_mask=action_mask,
        ref_log_probs=old + 0.2 * normal(batch, tokens),
    )
    judged = PolicyOutput(
        old + 0.15 * normal(batch, tokens), normal(batch, tokens).abs(), normal(batch)
    )
    return judged, taken


def naive_loss(
    new: Floats, entropy: Floats, values: Floats, then: OldSamples, c: PpoConfig
) -> float:
    """Compute the loss in scalars, sample by sample, from the papers' formulas."""
    assert then.action_mask is not None
    assert then.ref_log_probs is not None
    total = 0.0
    for b, weight in enumerate(then.weights.tolist()):
        ids = [d for d in range(new.shape[1]) if then.action_mask[b, d]]
        advantage = float(then.advantages[b])
        gaps = [float(new[b, d]) - float(then.log_probs[b, d]) for d in ids]
        ratios = [math.exp(gap) for gap in gaps]
        if c.level == "action":
            ratios = [math.exp(math.fsum(gaps))] if ids else []
        policy = 0.0
        for ratio in ratios:
            cut = min(max(ratio, 1 - c.clip_low), 1 + c.clip_high)
            gain = min(ratio * advantage, cut * advantage)
            if c.dual_clip is not None and advantage < 0:
                gain = max(gain, c.dual_clip * advantage)
            policy -= gain / len(ratios)
        error, target = float(values[b]) - float(then.returns[b]), float(then.returns[b])
        value = 0.5 * error**2
        if c.value.loss == "huber" and abs(error) > c.value.huber_delta:
            value = c.value.huber_delta * (abs(error) - 0.5 * c.value.huber_delta)
        if c.value.loss == "clipped":
            old = float(then.values[b])
            near = min(max(float(values[b]), old - c.value.clip), old + c.value.clip)
            value = max(value, 0.5 * (near - target) ** 2)
        disorder = sum(float(entropy[b, d]) for d in ids) / max(len(ids), 1)
        away = [float(then.ref_log_probs[b, d]) - float(new[b, d]) for d in ids]
        distance = sum(math.exp(gap) - gap - 1 for gap in away)
        total += weight * (
            c.policy_coefficient * policy
            + c.value.coefficient * value
            - c.entropy_coefficient * disorder
            + c.kl_coefficient * distance
        )
    return total


FULL = PpoConfig(
    entropy_coefficient=0.03, kl_coefficient=0.2, policy_coefficient=0.9, dual_clip=1.2,
    value=ValueConfig(huber_delta=0.5),
)  # fmt: skip


@pytest.mark.parametrize("loss", ["huber", "clipped", "mse"])
@pytest.mark.parametrize("level", ["action", "token"])
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradients_equal_an_independent_float64_computation(
    seed: int, level: Any, loss: Any
) -> None:
    config = replace(FULL, level=level, value=replace(FULL.value, loss=loss))
    judged, taken = samples(seed)
    assert judged.values is not None
    leaves = [x.requires_grad_() for x in (judged.log_probs, judged.entropy, judged.values)]
    found = ppo.ppo_loss(judged, taken, config).total
    found.backward()
    arrays = [leaf.detach().numpy().copy() for leaf in leaves]
    assert found.item() == pytest.approx(naive_loss(*arrays, taken, config), rel=1e-12)
    step = 1e-6
    for leaf, array in zip(leaves, arrays, strict=True):
        assert leaf.grad is not None
        for at in np.ndindex(array.shape):
            kept = array[at]
            slopes = []
            for move in (step, -step):
                array[at] = kept + move
                slopes.append(naive_loss(*arrays, taken, config))
            array[at] = kept
            wanted = (slopes[0] - slopes[1]) / (2 * step)
            assert leaf.grad[at].item() == pytest.approx(wanted, abs=1e-7), at


def plain(
    log_ratio: Tensor, advantages: Tensor, config: PpoConfig, action_mask: Tensor | None = None
) -> ppo.Losses:
    """Return the losses of actions (B, D) whose probabilities changed by `log_ratio`."""
    batch = len(advantages)
    nothing = torch.zeros(batch)
    taken = OldSamples(
        torch.zeros_like(log_ratio), advantages, nothing, nothing, torch.full((batch,), 1 / batch),
        action_mask,
    )  # fmt: skip
    return ppo.ppo_loss(PolicyOutput(log_ratio, torch.zeros_like(log_ratio), None), taken, config)


def test_06_action_level_multiplies_the_ratios_of_tokens() -> None:
    found = plain(torch.tensor([[0.1, 0.05]]), torch.ones(1), PpoConfig())
    assert found.policy.item() == pytest.approx(-math.exp(0.15))
    up = plain(torch.tensor([[0.2, 0.2]]), torch.ones(1), PpoConfig())
    assert up.policy.item() == pytest.approx(-1.28)
    assert up.clip_fraction.item() == 1


def test_07_token_level_clips_each_token_and_does_not_grow_with_their_number() -> None:
    config = PpoConfig(level="token")
    found = plain(torch.tensor([[0.5, 0.0, 0.1, 0.0]]), torch.ones(1), config)
    assert found.policy.item() == pytest.approx(-(1.28 + 1 + math.exp(0.1) + 1) / 4)
    assert found.clip_fraction.item() == 0.25


def test_08_tokens_that_were_not_carried_out_count_nowhere() -> None:
    action_mask = torch.tensor([[True, True, False]])
    for level in ("action", "token"):
        config = PpoConfig(level=level)  # type: ignore[arg-type]
        whole = plain(torch.tensor([[0.1, 0.05, 9.0]]), torch.ones(1), config, action_mask)
        short = plain(torch.tensor([[0.1, 0.05]]), torch.ones(1), config)
        for name in ("policy", "approx_kl", "clip_fraction", "entropy"):
            assert getattr(whole, name).item() == pytest.approx(getattr(short, name).item())


def test_09_the_upper_bound_may_be_higher() -> None:
    rise = torch.tensor([[0.4]])
    assert plain(rise, torch.ones(1), PpoConfig()).policy.item() == pytest.approx(-1.28)
    even = PpoConfig(clip_high=0.2)
    assert plain(rise, torch.ones(1), even).policy.item() == pytest.approx(-1.2)
    fallen = plain(-rise, -torch.ones(1), PpoConfig())
    assert fallen.policy.item() == pytest.approx(0.8)


def test_10_dual_clip_bounds_bad_actions_that_became_likely() -> None:
    rise, bad = torch.tensor([[3.0]]), torch.tensor([-1.0])
    assert plain(rise, bad, PpoConfig()).policy.item() == pytest.approx(math.exp(3))
    assert plain(rise, bad, PpoConfig(dual_clip=3.0)).policy.item() == pytest.approx(3)
    good = plain(rise, -bad, PpoConfig(dual_clip=3.0))
    assert good.policy.item() == pytest.approx(-1.28)


def test_11_values_learn_by_huber_clip_or_square() -> None:
    value, old, goal = torch.tensor([3.0]), torch.tensor([0.0]), torch.tensor([2.9])
    square = ppo.value_loss(value, old, goal, ValueConfig(loss="mse"))
    assert square.item() == pytest.approx(0.005, rel=1e-3)
    clipped = ppo.value_loss(value, old, goal, ValueConfig(loss="clipped", clip=0.2))
    assert clipped.item() == pytest.approx(0.5 * 2.7**2)
    huber = ppo.value_loss(value, old, -goal, ValueConfig(huber_delta=1.0))
    assert huber.item() == pytest.approx(5.9 - 0.5)


def test_12_entropy_is_a_mean_over_tokens() -> None:
    nothing = torch.zeros(1)
    for tokens in (2, 6):
        blank = torch.zeros(1, tokens)
        taken = OldSamples(blank, nothing, nothing, nothing, torch.ones(1))
        judged = PolicyOutput(blank, torch.full((1, tokens), 3.0), None)
        found = ppo.ppo_loss(judged, taken, PpoConfig(entropy_coefficient=0.1))
        assert found.entropy.item() == pytest.approx(3)
        assert found.total.item() == pytest.approx(-0.3)


def test_13_approximate_kl_is_not_negative_and_estimates_the_true_one() -> None:
    draw = torch.Generator().manual_seed(0)
    old, new = (torch.randn(2, 16, generator=draw) * 0.3).log_softmax(-1)
    chosen = torch.multinomial(old.exp(), 200_000, replacement=True, generator=draw)
    gap = (new - old)[chosen][:, None]
    found = plain(gap, torch.zeros(len(gap)), PpoConfig())
    true = (old.exp() * (old - new)).sum()
    assert found.approx_kl.item() == pytest.approx(true.item(), rel=0.03)
    assert plain(-gap[:1], torch.zeros(1), PpoConfig()).approx_kl.item() >= 0


def test_14_kl_to_the_starting_policy_pulls_back_to_it() -> None:
    log_probs = torch.tensor([[-1.0, -3.0]], requires_grad=True)
    nothing, start = torch.zeros(1), torch.tensor([[-1.5, -2.0]])
    taken = OldSamples(log_probs.detach(), nothing, nothing, nothing, torch.ones(1), None, start)
    judged = PolicyOutput(log_probs, torch.zeros(1, 2), None)
    ppo.ppo_loss(judged, taken, PpoConfig(kl_coefficient=1.0)).total.backward()
    assert log_probs.grad is not None
    assert log_probs.grad[0, 0] > 0 > log_probs.grad[0, 1]


def test_15_parts_add_up_to_the_whole() -> None:
    judged, taken = samples()
    whole = ppo.ppo_loss(judged, taken, FULL)
    parts = [
        ppo.ppo_loss(
            PolicyOutput(*(x[part] for x in judged)),  # type: ignore[index]
            OldSamples(**{name: x[part] for name, x in vars(taken).items()}),
            FULL,
        )
        for part in (slice(0, 2), slice(2, 3), slice(3, 9))
    ]
    for name in vars(whole):
        summed = sum(getattr(part, name).item() for part in parts)
        assert getattr(whole, name).item() == pytest.approx(summed, rel=1e-12), name


def test_16_enormous_ratios_stay_numbers() -> None:
    log_ratio = torch.tensor([[400.0], [-400.0]], requires_grad=True)
    found = plain(log_ratio, torch.tensor([-1.0, 1.0]), PpoConfig())
    found.total.backward()
    assert log_ratio.grad is not None
    assert bool(torch.isfinite(torch.stack([found.total.detach(), found.approx_kl])).all())
    assert bool(torch.isfinite(log_ratio.grad).all())


def test_samples_of_weight_0_may_be_anything() -> None:
    judged, taken = samples()
    clean = ppo.ppo_loss(judged, taken, FULL).total
    taken.advantages[3] = torch.nan
    assert ppo.ppo_loss(judged, taken, FULL).total.item() == clean.item()


def test_a_gradient_of_exactly_0_is_an_error_only_if_there_was_something_to_learn() -> None:
    with pytest.raises(PpoError, match="update 3: the policy gradient is exactly 0"):
        ppo.check_gradient(0.0, 0.5, "update 3")
    ppo.check_gradient(1e-30, 0.5, "update 3")
    ppo.check_gradient(0.0, 0.0, "update 3")


def test_every_detail_has_a_number_and_a_test() -> None:
    from crane_x7_vla_rl.training.rl import grpo, update

    docs = "\n".join(str(module.__doc__) for module in (ppo, update, grpo))
    numbers = [int(found) for found in re.findall(r"^(\d+)\. ", docs, re.MULTILINE)]
    files = (Path(__file__), Path(__file__).with_name("test_ppo_update.py"))
    tests = " ".join(re.findall(r"^def (\w+)", "\n".join(f.read_text() for f in files), re.M))
    assert numbers == list(range(1, len(numbers) + 1))
    assert not [number for number in numbers if f"test_{number:02d}_" not in tests]


GROUPS = torch.tensor([[0, 0, 1, 1, 1]]).expand(4, 5)
ENDED = torch.tensor(
    [[0, 0, 0, 0, 1], [1, 0, 0, 0, 0], [0, 1, 1, 0, 1], [1, 1, 1, 0, 1]], dtype=torch.bool
)
REWARDS = torch.tensor(
    [[0, 0, 0, 0, 1], [1, 0, 0, 0, 0], [0, 0, 1, 0, 1], [0, 0, 1, 0, 1]], dtype=torch.float32
)


def test_26_an_episode_is_as_good_as_its_group_says() -> None:
    valid = torch.ones(4, 5, dtype=torch.bool)
    advantages, taught = group_advantages(REWARDS, ENDED, valid, GROUPS)
    # Group 0: environment 0 won its first episode of 2 steps, lost its second; 1 lost twice.
    won, lost = math.sqrt(3), -1 / math.sqrt(3)
    assert advantages[:, 0].tolist() == pytest.approx([won, won, lost, lost], rel=1e-5)
    assert advantages[:, 1].tolist() == pytest.approx([lost] * 4, rel=1e-5)
    assert bool(taught[:, :2].all())


def test_27_groups_that_all_ended_alike_are_left_out() -> None:
    valid = torch.ones(4, 5, dtype=torch.bool)
    advantages, taught = group_advantages(REWARDS, ENDED, valid, GROUPS)
    assert not bool(taught[:, 2:].any())
    assert not bool(advantages[:, 2:].any())


def test_28_unfinished_and_discarded_episodes_are_left_out() -> None:
    valid = torch.ones(4, 5, dtype=torch.bool)
    valid[0, 0] = False
    rewards = REWARDS.clone()
    rewards[3, 1] = 1
    advantages, taught = group_advantages(rewards, ENDED, valid, GROUPS)
    assert taught[:, 0].tolist() == [False, False, True, True]
    assert advantages[2, 0] == advantages[0, 1] < 0 < advantages[3, 1]
    unfinished = ENDED.clone()
    unfinished[3, 1] = False
    _, taught = group_advantages(rewards, unfinished, ~torch.zeros_like(valid), GROUPS)
    assert taught[:, 1].tolist() == [True, True, True, False]


def test_28_episodes_that_began_too_late_for_the_longest_are_left_out() -> None:
    """Of these, only those that succeeded quickly would be known."""
    valid = torch.ones(4, 5, dtype=torch.bool)
    rewards = REWARDS.clone()
    rewards[3, 1] = 1
    _, all_of_them = group_advantages(rewards, ENDED, valid, GROUPS)
    assert bool(all_of_them[:, :2].all())
    advantages, taught = group_advantages(rewards, ENDED, valid, GROUPS, longest=3)
    assert taught[:, 0].tolist() == [True, True, False, False], "the second began in step 2"
    assert taught[:, 1].tolist() == [True, True, True, False]
    assert advantages[0, 0] > 0 > advantages[0, 1]
    assert bool(group_advantages(REWARDS, ENDED, valid, GROUPS, longest=9)[1][0, :2].all())


def test_26_without_normalisation_an_advantage_is_the_distance_from_the_mean() -> None:
    valid = torch.ones(4, 5, dtype=torch.bool)
    advantages, _ = group_advantages(REWARDS, ENDED, valid, GROUPS, normalise=False)
    assert advantages[:, 0].tolist() == pytest.approx([0.75, 0.75, -0.25, -0.25])


def test_grpo_refuses_other_shapes() -> None:
    with pytest.raises(PpoError, match=r"\(4, 4\).*expected \(T, N\)"):
        group_advantages(REWARDS, ENDED, ENDED, GROUPS[:, :4])


def test_every_field_of_the_configuration_is_documented_and_has_a_flag_of_its_own() -> None:
    known = list(leaves(PpoConfig))
    assert all(leaf.text for leaf in known)
    assert len({leaf.flag for leaf in known}) == len(known)
    wanted = {"minibatch_size": "64", "value.learning_rate": "3e-3", "dual_clip": None}
    made = loader.build(PpoConfig, [Layer("a.yaml", wanted)])
    assert (made.minibatch_size, made.value.learning_rate) == (64, 3e-3)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"learnig_rate": 1}, "ppo.yaml: learnig_rate is unknown; did you mean learning_rate"),
        ({"gamma": 1.5}, r"ppo.yaml: gamma is 1.5, expected 0 to 1"),
        ({"temperature": 0}, "ppo.yaml: temperature is 0.0, expected above 0"),
        ({"dual_clip": 1}, "ppo.yaml: dual_clip is 1.0, expected above 1"),
        ({"target_kl": 0}, "ppo.yaml: target_kl is 0.0, expected above 0"),
        ({"value.clip": 0}, "value.clip is 0.0, expected above 0"),
        ({"epochs": 0}, "ppo.yaml: epochs is 0, expected 1 or more"),
    ],
)
def test_senseless_configurations_are_refused(wanted: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        loader.build(PpoConfig, [Layer("ppo.yaml", wanted)])
