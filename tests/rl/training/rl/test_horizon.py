"""Discounts by seconds, a hold on the starting policy that adapts, and groups of the same scene."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import rl_rig
import torch
from accelerate import Accelerator
from rl_rig import Scripted

from crane_x7_vla_rl.policies.openvla.codec import Codec
from crane_x7_vla_rl.policies.openvla.weights import loading
from crane_x7_vla_rl.policies.openvla.weights.lora import LoraSettings, add_lora
from crane_x7_vla_rl.training import cli
from crane_x7_vla_rl.training.checkpoints import training_state
from crane_x7_vla_rl.training.checkpoints.training_state import Progress
from crane_x7_vla_rl.training.errors import ConfigError, ExitCode
from crane_x7_vla_rl.training.rl import agent as agents
from crane_x7_vla_rl.training.rl import kl_control
from crane_x7_vla_rl.training.rl.config import RlConfig, RlEvaluationConfig
from crane_x7_vla_rl.training.rl.episode_stats import Outcomes
from crane_x7_vla_rl.training.rl.kl_control import next_coefficient
from crane_x7_vla_rl.training.rl.ppo_config import PpoConfig, ValueConfig
from crane_x7_vla_rl.training.rl.rollout import RolloutConfig, collect
from crane_x7_vla_rl.training.rl.run_state import NEVER, RunState, Scenes

SHORT = PpoConfig(minibatch_size=4, micro_batch_size=4, epochs=1, value=ValueConfig(hidden=16))


def rolling(config: PpoConfig, chunk_steps: int = 1) -> RolloutConfig:
    torch.set_num_threads(1)
    loaded = loading.load(rl_rig.base())
    torch.manual_seed(0)
    add_lora(loaded.model, LoraSettings(rank=4, alpha=8))
    agent = agents.build(loaded.model, config, Accelerator(cpu=True))
    base = Codec.of(loaded.layout, loaded.model.norm_stats, "crane_x7")
    inputs = replace(base.inputs, chunk_steps=chunk_steps)
    codec = Codec.of(loaded.layout, loaded.model.norm_stats, "crane_x7", inputs)
    return RolloutConfig(Scripted({}), agent, codec, config, 4, seed=0)


# --- seconds --------------------------------------------------------------------------------------


def test_without_seconds_discounts_are_those_of_a_decision() -> None:
    assert PpoConfig().discounts(0.2) == (0.99, 0.95)
    assert PpoConfig().discounts(2.0) == (0.99, 0.95)


def test_a_reward_after_the_horizon_counts_1_of_e_at_any_rate() -> None:
    config = PpoConfig(horizon_s=20.0, credit_s=4.0)
    for rate_hz in (2, 5, 10, 20):
        gamma, gae_lambda = config.discounts(1 / rate_hz)
        assert gamma ** (20 * rate_hz) == pytest.approx(1 / math.e)
        assert gae_lambda ** (4 * rate_hz) == pytest.approx(1 / math.e)
    assert PpoConfig(horizon_s=20.0).discounts(0.2)[1] == 0.95, "each alone"
    assert PpoConfig(credit_s=4.0).discounts(0.2)[0] == 0.99


def test_a_decision_lasts_as_long_as_its_chunk() -> None:
    config = replace(SHORT, horizon_s=10.0)
    assert rolling(config, 1).discounts[0] == pytest.approx(math.exp(-0.2 / 10))
    assert rolling(config, 2).discounts[0] == pytest.approx(math.exp(-0.4 / 10))


def test_rollouts_discount_by_it() -> None:
    """With values of 0 and lambda near 1, a return is the discounted sum of rewards."""
    made = rolling(replace(SHORT, horizon_s=0.5, credit_s=1e9))
    script = {(3, env): "terminated" for env in range(4)}
    found = collect(replace(made, env=Scripted(script)), 0)
    assert found is not None
    gamma = math.exp(-0.2 / 0.5)
    wanted = [sum(gamma**k for k in range(left)) for left in (4, 3, 2, 1)]
    assert found.buffer.returns[:, 0].tolist() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("name", ["horizon_s", "credit_s"])
def test_a_horizon_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"ppo\.{name} is 0"):
        PpoConfig(**{name: 0.0})  # type: ignore[arg-type]


# --- the hold on the start ------------------------------------------------------------------------


def test_the_coefficient_follows_the_divergence() -> None:
    assert next_coefficient(0.01, 5.0, None) == 0.01
    assert next_coefficient(0.01, 0.11, 0.1) == 0.01, "near enough"
    assert next_coefficient(0.01, 0.16, 0.1) == 0.02
    assert next_coefficient(0.01, 0.06, 0.1) == 0.005
    assert next_coefficient(kl_control.MOST, 9.0, 0.1) == kl_control.MOST
    assert next_coefficient(kl_control.LEAST, 0.0, 0.1) == kl_control.LEAST
    assert next_coefficient(20.0, 9.0, 0.1) == 20.0, "what was configured is never cut"


def test_a_run_adapts_it_and_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crane_x7_vla_rl.sim.vector.make.make", lambda _: Scripted({}))
    hold = ("--kl-coefficient", "0.4", "--ref-kl-target", "50", "--save-every", "1")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    rl_rig.train(whole, *hold, "--num-updates", "3")
    used = [one["kl_coefficient"] for one in rl_rig.figures(whole)]
    assert used == [0.4, 0.2, 0.1], "the policy is nowhere near 50 nats away"
    rl_rig.train(stopped, *hold, "--num-updates", "2")
    rl_rig.again("--resume", str(stopped), "--num-updates", "3")
    assert [one["kl_coefficient"] for one in rl_rig.figures(stopped)] == used
    progress = training_state.read_progress(stopped / "last")
    assert progress.position is not None
    assert progress.position["kl_coefficient"] == 0.05
    rl_rig.assert_same(stopped, whole)


def test_what_is_configured_anew_at_a_resume_is_used() -> None:
    """Not the coefficient that another one was adapted to, nor the best of other evaluations."""
    before = {
        "best": 0.9, "evaluated": {"episodes": 50, "temperature": 0.0, "first_seed": 1_000_000},
        "kl_coefficient": 0.05, "kl_configured": 0.4,
    }  # fmt: skip

    def resumed(coefficient: float, **evaluation: Any) -> RunState:
        ppo = PpoConfig(kl_coefficient=coefficient, ref_kl_target=50.0)
        config = RlConfig(ppo=ppo, evaluation=RlEvaluationConfig(**evaluation))
        rollout = SimpleNamespace(longest=3, executed=1)
        run: Any = SimpleNamespace(env=Scripted({}), rollout=rollout, config=config)
        return RunState.of(run, Progress(position=before))

    assert (resumed(0.4).kl_coefficient, resumed(0.4).best) == (0.05, 0.9)
    assert resumed(0.8).kl_coefficient == 0.8
    assert resumed(0.4, temperature=1.0).best == NEVER


def test_it_waits_while_the_value_head_learns_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy does not move then: that it stays near its start says nothing."""
    monkeypatch.setattr("crane_x7_vla_rl.sim.vector.make.make", lambda _: Scripted({}))
    run = tmp_path / "run"
    hold = ("--kl-coefficient", "0.4", "--ref-kl-target", "50", "--value-warmup", "2")
    rl_rig.train(run, *hold, "--num-updates", "4")
    assert [one["kl_coefficient"] for one in rl_rig.figures(run)] == [0.4, 0.4, 0.4, 0.2]


# --- grpo with the same scene ---------------------------------------------------------------------


def test_grpo_compares_episodes_of_the_same_scene_alone() -> None:
    """Environments 0 and 1 share their scenes, 2 and 3 theirs; each compares its k-th episodes."""
    config = replace(SHORT, algorithm="grpo")
    script = {(1, 0): "terminated", (2, 1): "terminated", (3, 0): "terminated",
              (3, 2): "terminated", (3, 3): "terminated"}  # fmt: skip
    made = replace(rolling(config), env=Scripted(script), same_scene=2)
    found = collect(made, 0)
    assert found is not None
    advantages, valid = found.buffer.advantages, found.buffer.valid
    # Episode 0 of environment 0 has two rewards, that of 1 three: worse and better by as much.
    assert advantages[:2, 0].tolist() == pytest.approx([-1, -1])
    assert advantages[:3, 1].tolist() == pytest.approx([1, 1, 1])
    # Episode 1 of environment 0 has nothing to be compared with; 2 and 3 did equally well.
    assert not valid[2:, 0].any()
    assert not valid[:, 2:].any()
    other = collect(replace(made, env=Scripted(script), same_scene=1), 0)
    assert other is not None
    assert other.buffer.valid[:, 2:].all(), "by instruction, all of them are compared"


def test_each_rollout_begins_with_the_same_scene_in_environments_that_are_compared() -> None:
    env = Scripted({})
    began: list[dict[str, Any]] = []
    env.state_dict = lambda: {"seed": 7, "episodes": [5, 3, 1, 2]}  # type: ignore[method-assign]
    env.load_state_dict = began.append  # type: ignore[method-assign]
    scenes = Scenes(env, Outcomes(3, 1))
    scenes.begin_next(same_scene=2)
    scenes.begin_next()
    assert began == [
        {"seed": 7, "episodes": [6, 6, 3, 3]}, {"seed": 7, "episodes": [6, 4, 2, 3]},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--algorithm", "grpo", "--value-warmup", "1"), "but grpo has no critic; set both to 0"),
        (("--no-use-lora", "--kl-coefficient", "0.1"), "but lora.enabled is false"),
        (("--same-scene", "3"), "same_scene is 3, expected a divisor of the 2"),
        (("--same-scene", "0"), "env.same_scene is 0, expected 1 or more"),
        (("--ref-kl-target", "0.1"), "ppo.ref_kl_target is 0.1, but ppo.kl_coefficient is 0"),
        (("--horizon-s", "-1"), "ppo.horizon_s is -1"),
    ],
)
def test_wrong_values_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], said: str
) -> None:
    assert cli.main(["train", *rl_rig.flags(tmp_path / "run", *flags)]) == ExitCode.CONFIG
    assert said in capsys.readouterr().err
