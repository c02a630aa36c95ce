"""A policy that gives NaN neither begins a run, nor passes a rollout, nor is saved."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

import rl_rig
import spoilt_rig
import training_rig
from accelerate import Accelerator
from rl_rig import Scripted
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from crane_x7_vla_rl.policies.openvla.codec import Codec
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
from crane_x7_vla_rl.policies.openvla.weights import loading
from crane_x7_vla_rl.policies.openvla.weights.lora import LoraSettings, add_lora
from crane_x7_vla_rl.sim.vector import make as vector
from crane_x7_vla_rl.training import cli
from crane_x7_vla_rl.training.checkpoints import save as checkpoint
from crane_x7_vla_rl.training.errors import ExitCode, SpoiltError
from crane_x7_vla_rl.training.rl import agent as agents
from crane_x7_vla_rl.training.rl import evaluation
from crane_x7_vla_rl.training.rl.agent import Agent
from crane_x7_vla_rl.training.rl.ppo_config import PpoConfig, ValueConfig
from crane_x7_vla_rl.training.rl.rollout import RolloutConfig, collect
from crane_x7_vla_rl.training.sft.loss import SftLearner

CONFIG = PpoConfig(minibatch_size=4, micro_batch_size=4, epochs=1, value=ValueConfig(hidden=16))
SHORT = (
    "--num-updates",
    "2",
    "--save-every",
    "1",
    "--rollout-steps",
    "3",
    "--minibatch-size",
    "12",
)
MLP = spoilt_rig.PARTS["mlp"]
ADAPTER = "language_model.model.layers.0.mlp.up_proj.lora_A.default.weight"


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector, "make", lambda _: Scripted({}))


# The start


def test_sft_does_not_begin_with_weights_that_are_no_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    base = spoilt_rig.copied(training_rig.base(), tmp_path / "base", MLP, torch.nan)
    argv = ["sft", *training_rig.flags(tmp_path / "run", "--model", str(base))]
    assert cli.main(argv) == ExitCode.POLICY_LOAD
    assert f"weights hold NaN: {MLP} (1 of " in capsys.readouterr().err
    assert "configuration:" not in caplog.text, "logged before the start was certain"


@pytest.mark.usefixtures("scripted")
def test_train_does_not_begin_with_weights_that_are_no_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    base = spoilt_rig.copied(rl_rig.base(), tmp_path / "base", MLP, torch.inf)
    argv = ["train", *rl_rig.flags(tmp_path / "run", "--sft-checkpoint", str(base))]
    assert cli.main(argv) == ExitCode.POLICY_LOAD
    assert f"weights hold Inf: {MLP} (1 of " in capsys.readouterr().err
    assert "configuration:" not in caplog.text, "logged before the start was certain"


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "value_head.safetensors"])
def test_train_does_not_go_on_with_weights_that_are_no_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    rl_rig.train(tmp_path / "run", *SHORT, "--num-updates", "1")
    path = (tmp_path / "run" / "last").resolve() / file
    tensors = load_file(path)
    name = sorted(tensors)[-1]
    tensors[name].flatten()[0] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    argv = ["train", "--resume", str(path.parent), "--num-updates", "3"]
    assert cli.main(argv) == ExitCode.POLICY_LOAD
    said = capsys.readouterr().err
    assert f"{path.parent}" in said
    assert re.search(r"weights hold NaN: [\w.]+ \(1 of \d+ values\)", said)


def test_sft_does_not_go_on_with_adapters_that_are_no_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training_rig.train(tmp_path / "run", "--max-steps", "1")
    path = (tmp_path / "run" / "last").resolve() / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[sorted(tensors)[0]].flatten()[0] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    argv = ["sft", "--resume-from-checkpoint", str(path.parent), "--max-steps", "2"]
    assert cli.main(argv) == ExitCode.POLICY_LOAD
    assert "weights hold NaN: " in capsys.readouterr().err


# What is saved


@pytest.mark.parametrize("lora", ["--use-lora", "--no-use-lora"])
def test_sft_saves_no_weights_that_are_no_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lora: str
) -> None:
    """A step that is too long leaves them, after the loss was looked at."""
    real = SftLearner.update

    def far(self: SftLearner, rate: float) -> None:
        real(self, rate)
        if len(steps := [*steps_done, rate]) == 2:
            spoil(self.model)
        steps_done[:] = steps

    steps_done: list[float] = []
    monkeypatch.setattr(SftLearner, "update", far)
    run = tmp_path / "run"
    more = ("--save-steps", "1", "--max-steps", "3", lora)
    assert cli.main(["sft", *training_rig.flags(run, *more)]) == ExitCode.NOT_FINITE
    said = capsys.readouterr().err
    assert re.search(r"checkpoint-2 is not saved: weights hold Inf: [\w.]+ \(1 of ", said)
    assert f"the last good checkpoint is {run / 'checkpoint-1'}" in said
    assert "lower --learning-rate" in said
    assert checkpoint.newest(run) == run / "checkpoint-1"


def test_sft_says_that_weights_were_spoilt_before_a_loss_that_is_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = SftLearner.update

    def far(self: SftLearner, rate: float) -> None:
        real(self, rate)
        with torch.no_grad():
            self.model.get_parameter(ADAPTER)[0, 0] = torch.inf

    monkeypatch.setattr(SftLearner, "update", far)
    argv = training_rig.flags(tmp_path / "run", "--max-steps", "3", "--save-steps", "9")
    assert cli.main(["sft", *argv]) == ExitCode.NOT_FINITE
    said = capsys.readouterr().err
    assert f"those of update 1, but already contain NaN: weights hold Inf: {ADAPTER} (1 of" in said


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("what", ["policy", "value_head"])
def test_train_saves_no_weights_that_are_no_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    run = tmp_path / "run"
    rl_rig.train(run, *SHORT, "--num-updates", "1")
    good = checkpoint.newest(run)
    assert good is not None
    real = Agent.step

    def far(self: Agent, policy_scale: float, value_scale: float) -> None:
        real(self, policy_scale, value_scale)
        spoil(self.core.get_submodule(what))

    monkeypatch.setattr(Agent, "step", far)
    argv = ["train", "--resume", str(run), "--num-updates", "3", "--minibatch-size", "99"]
    assert cli.main(argv) == ExitCode.NOT_FINITE
    said = capsys.readouterr().err
    name = r"value_head\.[\w.]+" if what == "value_head" else r"[\w.]+lora_B\.[\w.]+"
    assert re.search(rf"checkpoint_2 is not saved: weights hold Inf: {name} \(1 of ", said)
    assert f"the last good checkpoint is {good}" in said
    assert checkpoint.newest(run) == good


def spoil(module: nn.Module) -> None:
    """Put an infinity into the last weight that learns."""
    weight = [parameter for parameter in module.parameters() if parameter.requires_grad][-1]
    with torch.no_grad():
        weight.view(-1)[0] = torch.inf


# Rollouts


@pytest.fixture
def rolling() -> RolloutConfig:
    torch.set_num_threads(1)
    loaded = loading.load(rl_rig.base())
    torch.manual_seed(0)
    add_lora(loaded.model, LoraSettings(rank=4, alpha=8))
    agent = agents.build(loaded.model, CONFIG, Accelerator(cpu=True))
    codec = Codec.of(loaded.layout, loaded.model.norm_stats, "crane_x7")
    return RolloutConfig(Scripted({}), agent, codec, CONFIG, 3, seed=0)


def head(agent: Agent) -> Tensor:
    assert agent.core.value_head is not None
    return agent.core.value_head.get_parameter("layers.1.weight")


DAMAGE: dict[str, tuple[Callable[[Agent], Tensor], str, str]] = {
    "adapter": (
        lambda agent: agent.policy.get_parameter(ADAPTER),
        "log_probs of step 0",
        f"policy.{ADAPTER}",
    ),
    "head": (head, "values of step 0", "value_head.layers.1.weight"),
}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("what", DAMAGE)
def test_a_rollout_ends_before_the_arm_moves_and_names_the_weight(
    rolling: RolloutConfig, what: str, value: float
) -> None:
    which, figure, name = DAMAGE[what]
    with torch.no_grad():
        which(rolling.agent)[0, 0] = value
    env = Scripted({})
    kind = "NaN" if value != value else "Inf"
    pattern = (
        rf"update 8: {figure} are NaN or infinite: weights hold {kind}: {re.escape(name)} \(1 of"
    )
    with pytest.raises(SpoiltError, match=pattern):
        collect(replace(rolling, env=env), 7)
    assert rl_rig.words(env.log) == "l0"


def test_grpo_asks_for_no_values_but_checks_what_it_asks_for(rolling: RolloutConfig) -> None:
    with torch.no_grad():
        rolling.agent.policy.get_parameter(ADAPTER)[0, 0] = torch.nan
    with pytest.raises(SpoiltError, match=re.escape(ADAPTER)):
        collect(replace(rolling, ppo=replace(CONFIG, algorithm="grpo")), 0)


def test_values_of_truncated_episodes_are_checked_too(rolling: RolloutConfig) -> None:
    """They belong to no step of the buffer."""
    env = Scripted({(0, 1): "truncated"})
    real = env.receive

    def receive(group: int) -> object:
        with torch.no_grad():
            head(rolling.agent)[0, 0] = torch.nan
        return real(group)

    env.receive = receive  # type: ignore[assignment,method-assign]
    with pytest.raises(SpoiltError, match=r"values of step 0 are .* value_head\.layers\.1\.weight"):
        collect(replace(rolling, env=env), 0)


@pytest.mark.usefixtures("scripted")
def test_a_policy_that_evaluation_finds_spoilt_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = evaluation.success

    def spoilt_success(run: Any, runner: Runner, step: int) -> float:
        with torch.no_grad():
            runner.model.get_parameter(MLP)[0, 0] = torch.nan
        return real(run, runner, step)

    monkeypatch.setattr(evaluation, "success", spoilt_success)
    run = tmp_path / "run"
    more = ("--evaluate-every", "1", "--evaluate-episodes", "1", "--evaluate-videos", "0")
    assert cli.main(["train", *rl_rig.flags(run, *SHORT, *more)]) == ExitCode.NOT_FINITE
    said = capsys.readouterr().err
    assert "update 1, evaluation: " in said
    assert "is NaN or infinite" in said
    assert checkpoint.newest(run) is None


def test_a_merged_adapter_that_is_no_number_is_not_written_as_a_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train` starts from an adapter by merging it first."""
    training_rig.train(tmp_path / "sft", "--max-steps", "1")
    adapter = shutil.copytree((tmp_path / "sft" / "last").resolve(), tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(key for key in sorted(tensors) if "language_model" in key)
    tensors[name].flatten()[0] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    base = f"{training_rig.base()}"
    config = (adapter / "adapter_config.json").read_text()
    relative = re.search(r'"base_model_name_or_path": "([^"]*)"', config)
    assert relative is not None
    (adapter / "adapter_config.json").write_text(config.replace(relative[1], base))
    argv = ["train", *rl_rig.flags(tmp_path / "run", "--sft-checkpoint", str(adapter))]
    assert cli.main(argv) == ExitCode.POLICY_LOAD
    assert f"weights hold NaN: {name}" in capsys.readouterr().err
    assert not (tmp_path / "run" / "base").exists()
