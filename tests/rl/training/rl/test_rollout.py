"""Rollouts store what updates need: the right bytes, values, masks and times."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import rl_rig
import torch
from accelerate import Accelerator
from rl_rig import Scripted

from crane_x7_vla_rl.policies.openvla.codec import Codec
from crane_x7_vla_rl.policies.openvla.image import crop_and_resize, cut
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
from crane_x7_vla_rl.policies.openvla.weights import loading
from crane_x7_vla_rl.policies.openvla.weights.lora import LoraSettings, add_lora
from crane_x7_vla_rl.training.errors import NotFiniteError
from crane_x7_vla_rl.training.rl import agent as agents
from crane_x7_vla_rl.training.rl.ppo_config import PpoConfig, ValueConfig
from crane_x7_vla_rl.training.rl.rollout import Collected, RolloutConfig, blocks, collect
from crane_x7_vla_rl.training.rl.update import UpdateIndex, update
from crane_x7_vla_rl.vector_config import spread

CONFIG = PpoConfig(minibatch_size=4, micro_batch_size=4, epochs=1, value=ValueConfig(hidden=16))
STEPS = 4


@pytest.fixture(scope="module")
def rolling() -> RolloutConfig:
    """Return a configuration without environments whose value head says more than 0."""
    torch.set_num_threads(1)
    loaded = loading.load(rl_rig.base())
    torch.manual_seed(0)
    add_lora(loaded.model, LoraSettings(rank=4, alpha=8))
    agent = agents.build(loaded.model, CONFIG, Accelerator(cpu=True))
    assert agent.core.value_head is not None
    torch.nn.init.normal_(agent.core.value_head.layers[-1].weight)
    base = Codec.of(loaded.layout, loaded.model.norm_stats, "crane_x7")
    inputs = replace(base.inputs, chunk_steps=2)
    codec = Codec.of(loaded.layout, loaded.model.norm_stats, "crane_x7", inputs)
    return RolloutConfig(Scripted({}), agent, codec, CONFIG, STEPS, seed=0)


def rolled(
    rolling: RolloutConfig, script: dict[tuple[int, int], str], number: int = 0
) -> Collected:
    found = collect(replace(rolling, env=Scripted(script)), number)
    assert found is not None
    return found


def test_groups_take_turns_so_that_one_is_simulated_while_the_other_is_looked_at(
    rolling: RolloutConfig,
) -> None:
    env = Scripted({})
    collect(replace(rolling, env=env, steps=2), 0)
    assert rl_rig.words(env.log) == "l0 s0 l1 s1 r0 l0 s0 r1 l1 s1 r0 r1 l0 l1"


def test_a_device_is_given_the_next_group_before_it_answers_for_the_last_one(
    rolling: RolloutConfig,
) -> None:
    env, script = Scripted({}), {(1, 2): "truncated", (2, 0): "discarded"}
    collect(replace(rolling, env=env, steps=2, ahead=True), 0)
    assert rl_rig.words(env.log) == "l0 l1 s0 r0 l0 s1 r1 l1 s0 s1 r0 r1 l0 l1"
    in_turn = rolled(rolling, script).buffer
    ahead = rolled(replace(rolling, ahead=True), script).buffer
    for name in ("images", "tokens", "log_probs", "values", "advantages", "returns", "valid"):
        assert torch.equal(getattr(ahead, name), getattr(in_turn, name)), name


def test_one_group_alone_is_simulated_before_it_is_asked_again(rolling: RolloutConfig) -> None:
    env = Scripted({})
    env.groups = (range(2),)  # type: ignore[assignment]
    env.num_envs = 2
    collect(replace(rolling, env=env, steps=2, ahead=True), 0)
    assert rl_rig.words(env.log) == "l0 s0 r0 l0 s0 r0 l0"


@pytest.mark.parametrize("ahead", [False, True])
def test_groups_can_share_a_prediction_that_gives_the_same(
    rolling: RolloutConfig, ahead: bool
) -> None:
    env = Scripted({})
    collect(replace(rolling, env=env, steps=2, batch=4, ahead=ahead), 0)
    assert rl_rig.words(env.log) == "l0 l1 s0 s1 r0 r1 l0 l1 s0 s1 r0 r1 l0 l1"
    script = {(1, 2): "truncated", (1, 0): "truncated", (2, 0): "discarded", (3, 3): "terminated"}
    apart = rolled(rolling, script)
    shared = rolled(replace(rolling, batch=4, ahead=ahead), script)
    for name in ("images", "tokens", "valid", "action_mask"):
        assert torch.equal(getattr(shared.buffer, name), getattr(apart.buffer, name)), name
    for name in ("log_probs", "values", "advantages", "returns"):
        ours, theirs = getattr(shared.buffer, name), getattr(apart.buffer, name)
        assert torch.allclose(ours, theirs, atol=1e-4), name
    assert shared.buffer.prompts[0][2].equal(apart.buffer.prompts[0][2])
    assert (shared.episodes, shared.ended) == (apart.episodes, apart.ended)


def test_a_prediction_is_as_large_as_allowed_whatever_the_number_of_groups() -> None:
    assert blocks(spread(64, 2), 32) == (range(1), range(1, 2))
    assert blocks(spread(64, 8), 32) == (range(4), range(4, 8))
    assert blocks(spread(64, 8), 64) == (range(8),)
    assert blocks(spread(64, 8), 20) == (range(2), range(2, 4), range(4, 6), range(6, 8))
    assert blocks(spread(10, 4), 5) == (range(2), range(2, 4))
    assert blocks(spread(6, 3), 1) == (range(1), range(1, 2), range(2, 3))


def test_the_policy_sees_and_keeps_what_it_sees_on_an_arm(rolling: RolloutConfig) -> None:
    """The bytes in the buffer make the very pixels that the policy makes of the picture."""
    found = rolled(rolling, {})
    picture, view = Scripted({}).look(0).images[1], rolling.codec.inputs.view
    policy = rolling.agent.policy
    wanted = policy.preprocess([cut(picture, view)])
    assert torch.equal(found.buffer.pixels(policy, torch.tensor([1])), wanted)
    assert found.buffer.images.dtype == torch.uint8


def test_pictures_of_the_model_s_size_are_kept_as_they_are() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    into = torch.empty(2, 32, 32, 3, dtype=torch.uint8)
    crop_and_resize(pictures, (0, 0, 1, 1), into)
    assert np.array_equal(into.numpy(), pictures)


def test_the_first_update_sees_ratios_of_1_and_the_rollout_s_values(rolling: RolloutConfig) -> None:
    metrics = update(rolling.agent, rolled(rolling, {}).buffer, CONFIG, UpdateIndex(0))
    assert metrics.ratio_error < 1e-3
    assert metrics.value_error < 1e-3
    assert metrics.policy_grad_norm > 0


def test_a_truncated_episode_is_worth_what_its_last_view_is(rolling: RolloutConfig) -> None:
    ended = rolled(rolling, {(1, 2): "truncated"}).buffer
    terminated = rolled(rolling, {(1, 2): "terminated"}).buffer
    assert ended.returns[1, 2] != terminated.returns[1, 2]
    assert math.isclose(float(terminated.returns[1, 2]), 1.0, rel_tol=1e-5)
    worth = (float(ended.returns[1, 2]) - 1.0) / CONFIG.gamma
    env = Scripted({})
    env.done = [2, 2]
    views = env._views(1, np.array([0]), 1)
    shown = torch.empty(1, 32, 32, 3, dtype=torch.uint8)
    crop_and_resize(views.images, rolling.codec.inputs.view, shown)
    policy = rolling.agent.policy
    prompts = rolling.codec.prompts(views.instructions, views.state_rad)
    hidden = Runner(policy).roll_out(policy.normalise(shown), prompts, 1).hidden
    assert math.isclose(worth, float(rolling.agent.value(hidden)), rel_tol=1e-3, abs_tol=1e-4)


def test_a_lost_simulation_takes_its_whole_episode_along_and_nothing_else(
    rolling: RolloutConfig,
) -> None:
    found = rolled(rolling, {(0, 1): "terminated", (2, 1): "discarded"})
    valid = torch.ones(STEPS, 4, dtype=torch.bool)
    valid[1:3, 1] = False
    assert torch.equal(found.buffer.valid, valid)
    assert found.discarded == 2
    assert not found.buffer.advantages[1:3, 1].any()


def test_tokens_of_steps_that_were_not_carried_out_do_not_count(rolling: RolloutConfig) -> None:
    found = rolled(rolling, {(1, 0): "terminated"})
    assert found.buffer.action_mask is not None
    assert found.buffer.action_mask[1, 0].tolist() == [True] * 8 + [False] * 8
    assert found.buffer.action_mask[0].all()
    assert found.env_steps == 2 * 4 * STEPS - 1
    assert [one.env for one in found.episodes] == [0]


def test_the_same_update_draws_the_same_actions_and_another_one_others(
    rolling: RolloutConfig,
) -> None:
    one, same, other = (rolled(rolling, {}, number).buffer.tokens for number in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_rollout_ends_early_when_asked_and_leaves_nothing_under_way(
    rolling: RolloutConfig,
) -> None:
    env = Scripted({})
    assert collect(replace(rolling, env=env), 0, lambda: True) is None
    assert rl_rig.words(env.log) == "l0 s0 l1 s1 r0 r1"
    env = Scripted({})
    assert collect(replace(rolling, env=env, ahead=True), 0, lambda: True) is None
    assert rl_rig.words(env.log) == "l0 l1 s0 s1 r0 r1"


def test_a_reward_that_is_no_number_names_update_step_and_environment(
    rolling: RolloutConfig,
) -> None:
    with pytest.raises(
        NotFiniteError, match=r"update 8, step 0: environment 0 returned the reward nan"
    ):
        collect(replace(rolling, env=Scripted({}, reward=math.nan)), 7)


def test_grpo_learns_from_whole_episodes_alone(rolling: RolloutConfig) -> None:
    config = replace(CONFIG, algorithm="grpo")
    script = {(2, 0): "terminated", (3, 1): "terminated"}
    found = collect(replace(rolling, env=Scripted(script), ppo=config), 0)
    assert found is not None
    assert not found.buffer.valid[:, 2:].any()
    assert found.buffer.valid[:3, :2].all()
    assert not found.buffer.values.any()


def test_kept_patches_change_neither_the_rollout_nor_the_update() -> None:
    found, metrics, moved = [], [], []
    for keeps in (False, True):
        made = blind_config(keeps)
        rollout = rolled(made, {})
        found.append(rollout.buffer)
        metrics.append(update(made.agent, rollout.buffer, CONFIG, UpdateIndex(0)))
        moved.append(made.agent.tensors(0)[0])
    pictures, patches = found
    assert pictures.images.dtype == torch.uint8
    config = made.agent.policy.config
    assert patches.images.shape[2:] == (config.patches, config.text.hidden_size)
    assert torch.equal(patches.tokens, pictures.tokens)
    assert torch.allclose(patches.log_probs, pictures.log_probs, atol=1e-6)
    assert math.isclose(metrics[0].policy_grad_norm, metrics[1].policy_grad_norm, rel_tol=1e-4)
    for name, tensor in moved[0].items():
        assert torch.allclose(tensor, moved[1][name], atol=1e-5), name


def blind_config(keeps: bool) -> RolloutConfig:
    """Return a configuration whose vision does not learn."""
    torch.set_num_threads(1)
    loaded = loading.load(rl_rig.base())
    torch.manual_seed(0)
    add_lora(loaded.model, LoraSettings(rank=4, alpha=8, targets=["q_proj", "down_proj"]))
    agent = agents.build(loaded.model, CONFIG, Accelerator(cpu=True))
    codec = Codec.of(loaded.layout, loaded.model.norm_stats, "crane_x7")
    return RolloutConfig(Scripted({}), agent, codec, CONFIG, STEPS, seed=0, keep_patches=keeps)
