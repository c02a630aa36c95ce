"""Separate critics: what they see, that they learn, and that no policy depends on them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import ppo_rig
import pytest
import rl_rig
import torch
from accelerate import Accelerator
from rl_rig import Scripted
from torch import Tensor

from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.policies.load import load_policy
from crane_x7_vla_rl.policies.openvla.codec import Codec
from crane_x7_vla_rl.policies.openvla.weights import loading
from crane_x7_vla_rl.policies.openvla.weights.lora import LoraSettings, add_lora
from crane_x7_vla_rl.training import cli
from crane_x7_vla_rl.training.errors import ConfigError, ExitCode, NotFiniteError, PpoError
from crane_x7_vla_rl.training.rl import agent as agents
from crane_x7_vla_rl.training.rl import critic_update, critics, value_head
from crane_x7_vla_rl.training.rl.agent import Agent
from crane_x7_vla_rl.training.rl.ppo_config import PpoConfig, ValueConfig
from crane_x7_vla_rl.training.rl.rollout import Collected, RolloutConfig, collect
from crane_x7_vla_rl.training.rl.update import UpdateIndex, update
from crane_x7_vla_rl.types import JointState, Observation

Kind = Literal["own", "state"]
KINDS: tuple[Kind, ...] = ("own", "state")
STEPS = 4


def config(kind: Kind, **more: object) -> PpoConfig:
    value = ValueConfig(hidden=16, critic=kind, **more)  # type: ignore[arg-type]
    return PpoConfig(minibatch_size=4, micro_batch_size=4, epochs=1, value=value)


def made(kind: Kind, **more: object) -> RolloutConfig:
    """Return a rollout whose critic says more than 0."""
    torch.set_num_threads(1)
    loaded = loading.load(rl_rig.base())
    torch.manual_seed(0)
    add_lora(loaded.model, LoraSettings(rank=4, alpha=8))
    agent = agents.build(loaded.model, config(kind, **more), Accelerator(cpu=True))
    ppo_rig.wake(agent)
    codec = Codec.of(loaded.layout, loaded.model.norm_stats, "crane_x7")
    return RolloutConfig(Scripted({}, truth=0.0), agent, codec, config(kind, **more), STEPS, seed=0)


@pytest.fixture(scope="module")
def rolling() -> dict[Kind, RolloutConfig]:
    return {kind: made(kind) for kind in KINDS}


def rolled(given: RolloutConfig, env: Scripted) -> Collected:
    found = collect(replace(given, env=env), 0)
    assert found is not None
    return found


def policy_of(agent: Agent) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in agent.tensors(0)[0].items()}


def critic_of(agent: Agent) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in agent.tensors(0)[1][value_head.FILE].items()}


def test_no_prediction_depends_on_the_true_state(rolling: dict[Kind, RolloutConfig]) -> None:
    """The same scenes, with another truth behind them: the policy does the same, values differ."""
    one, other = (rolled(rolling["state"], Scripted({}, truth=t)).buffer for t in (0.0, 1.0))
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.log_probs, other.log_probs)
    assert torch.equal(one.images, other.images)
    assert all(a.equal(b) for row, same in zip(one.prompts, other.prompts, strict=True)
               for a, b in zip(row, same, strict=True))  # fmt: skip
    assert not torch.equal(one.values, other.values)


def test_a_true_state_that_is_not_wanted_changes_nothing(
    rolling: dict[Kind, RolloutConfig],
) -> None:
    one, other = (rolled(rolling["own"], Scripted({}, truth=t)).buffer for t in (None, 1.0))
    assert torch.equal(one.values, other.values)
    assert torch.equal(one.tokens, other.tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_updates_value_what_the_rollout_valued(
    rolling: dict[Kind, RolloutConfig], kind: Kind
) -> None:
    given = made(kind)
    found = rolled(given, Scripted({(1, 2): "truncated"}, truth=0.0))
    metrics = update(given.agent, found.buffer, given.ppo, UpdateIndex(0))
    assert metrics.ratio_error < 1e-3
    assert metrics.value_error < 1e-3
    assert metrics.value_loss > 0
    del rolling


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_episode_and_a_block_of_two_groups_are_valued_alike(
    rolling: dict[Kind, RolloutConfig], kind: Kind
) -> None:
    script = {(1, 2): "truncated", (2, 0): "terminated"}
    apart = rolled(rolling[kind], Scripted(script, truth=0.5)).buffer
    shared = rolled(replace(rolling[kind], batch=4), Scripted(script, truth=0.5)).buffer
    assert torch.allclose(apart.values, shared.values, atol=1e-4)
    assert torch.allclose(apart.returns, shared.returns, atol=1e-4)
    ended = rolled(rolling[kind], Scripted({(1, 2): "terminated"}, truth=0.5)).buffer
    assert apart.returns[1, 2] != ended.returns[1, 2], "the last view has a value"


@pytest.mark.parametrize("kind", KINDS)
def test_its_loss_moves_no_policy(kind: Kind) -> None:
    given = made(kind)
    still = replace(given.ppo, policy_coefficient=0.0)
    before, critic = policy_of(given.agent), critic_of(given.agent)
    update(given.agent, rolled(given, Scripted({}, truth=0.0)).buffer, still, UpdateIndex(0))
    assert all(torch.equal(before[name], x) for name, x in policy_of(given.agent).items())
    assert any(not torch.equal(critic[name], x) for name, x in critic_of(given.agent).items())


@pytest.mark.parametrize("kind", KINDS)
def test_29_extra_epochs_move_the_critic_alone_towards_the_returns(kind: Kind) -> None:
    given, more = made(kind), made(kind, extra_epochs=10)
    buffer = rolled(given, Scripted({}, truth=0.0)).buffer
    for each in (given, more):
        update(each.agent, buffer, each.ppo, UpdateIndex(0))
    policy = policy_of(given.agent)
    assert all(torch.equal(policy[name], x) for name, x in policy_of(more.agent).items())
    errors = []
    for each in (given, more):
        seen = buffer.seen_by_critic(torch.arange(16), torch.device("cpu"))
        assert seen is not None
        errors.append(float((each.agent.value(seen) - buffer.returns.flatten()).square().mean()))
    assert errors[1] < errors[0]


def test_the_own_critic_sees_where_something_is() -> None:
    """Pooling keeps places apart: the same patches in another order have another value."""
    torch.manual_seed(0)
    critic = critics.OwnCritic(8, ValueConfig(hidden=16, critic="own"))
    torch.nn.init.normal_(critic.layers[-1].weight)  # type: ignore[arg-type]
    patches, hidden, joints = torch.randn(1, 16, 8), torch.randn(1, 8), torch.zeros(1, 8)
    one = critic(critics.own_view(patches, hidden, joints))
    other = critic(critics.own_view(patches.flip(1), hidden, joints))
    assert one.shape == (1,)
    assert not torch.allclose(one, other)
    assert not torch.allclose(one, critic(critics.own_view(patches, hidden, joints + 1)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_critic_says_0(kind: Kind) -> None:
    critic = critics.make(ValueConfig(hidden=8, critic=kind), 4)
    width = critics.TRUE_STATE if kind == "state" else 4 * critics.GRID**2 + 4 + 8
    value = critic(torch.randn(3, width, dtype=torch.bfloat16))
    assert value.dtype == torch.float32
    assert value.tolist() == [0, 0, 0]


def test_environments_that_do_not_tell_are_named(rolling: dict[Kind, RolloutConfig]) -> None:
    with pytest.raises(PpoError, match="tell no true state"):
        rolled(rolling["state"], Scripted({}))


def test_extra_epochs_need_a_critic_of_its_own() -> None:
    with pytest.raises(ConfigError, match="has nothing to learn from alone"):
        ValueConfig(extra_epochs=1)


def test_a_critic_that_becomes_nan_ends_the_update(rolling: dict[Kind, RolloutConfig]) -> None:
    given = rolling["state"]
    buffer = rolled(given, Scripted({}, truth=0.0)).buffer
    broken = replace(buffer, returns=buffer.returns * float("nan"))
    before = critic_of(given.agent)
    left = [((torch.arange(4),), 0.25)]
    with pytest.raises(NotFiniteError, match=r"lower ppo\.value\.learning_rate"):
        critic_update.repeat(given.agent, broken, given.ppo.value, left, 1.0)
    assert all(torch.equal(before[name], x) for name, x in critic_of(given.agent).items())


def test_genesis_is_refused_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train", "--critic", "state", "--simulator", "genesis", "--env-id", "Lift-CRANE-X7"]
    assert cli.main(argv) == ExitCode.CONFIG
    assert "set it to own, or env.simulator to maniskill" in capsys.readouterr().err


TOLD = ("--critic", "state", "--value-extra-epochs", "2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with a critic of the true state, in a real simulation, never stopped."""
    run = tmp_path_factory.mktemp("critics") / "run"
    rl_rig.train(run, *TOLD, "--num-updates", "2", "--save-every", "1")
    return run


@pytest.mark.timeout(200)
def test_a_policy_that_learned_beside_the_truth_acts_without_it(trained: Path) -> None:
    """Its checkpoint drives from an image, an instruction and joints, with no critic available."""
    assert all(one["policy_grad_norm"] > 0 for one in rl_rig.figures(trained))
    alone = trained / "alone"
    shutil.copytree(trained / "last", alone)
    (alone / "value_head.safetensors").unlink()
    state = np.array([0, 0.4, 0, -2, 0, -0.8, 1.6, 0.3])
    seen = Observation(
        np.full((48, 48, 3), 90, np.uint8), JointState(state, np.zeros(8)), "lift the red cube", 0.0
    )
    told, untold = (
        load_policy("openvla", ModelOptions(path=str(path))).predict([seen])[0].position_rad
        for path in (trained / "last", alone)
    )
    assert np.array_equal(told, untold)


@pytest.mark.timeout(200)
def test_it_resumes_bit_for_bit(trained: Path) -> None:
    stopped = trained.parent / "stopped"
    rl_rig.train(stopped, *TOLD, "--num-updates", "1", "--save-every", "1")
    rl_rig.again("--resume", str(stopped), "--num-updates", "2")
    rl_rig.assert_same(stopped, trained)


def test_another_critic_cannot_go_on(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train", "--resume", str(trained), "--critic", "own", "--num-updates", "3"]
    assert cli.main(argv) == ExitCode.CONFIG
    assert "ppo.value.critic: 'state' → 'own'" in capsys.readouterr().err
