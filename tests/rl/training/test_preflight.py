"""What is cheap to find wrong with a run is found first, all of it at once, without torch."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import httpx2
import pytest
from huggingface_hub import HfApi
from places import ROOT

from crane_x7_vla_rl.policies import cuda_devices, hub
from crane_x7_vla_rl.policies.base import PolicyLoadError
from crane_x7_vla_rl.training import preflight, settings
from crane_x7_vla_rl.training.errors import ConfigError, ExitCode, OutputError, PreflightError
from crane_x7_vla_rl.training.evaluate import command as evaluate_command
from crane_x7_vla_rl.training.rl import command as rl_command
from crane_x7_vla_rl.training.sft import command as sft_command

CODE = """
import sys
from crane_x7_vla_rl.training.cli import main
code = main(sys.argv[1:])
print(sorted({"torch", "sapien", "mani_skill"} & sys.modules.keys()))
sys.exit(code)
"""


def refused(command: ModuleType, *argv: str) -> str:
    """Return what the command says before it loads anything."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises((PreflightError, PolicyLoadError)) as caught:
        command.run(parser.parse_args(argv))
    return str(caught.value)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda_devices, "count", lambda: 0)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC", "VLA_MODEL_PATH"):
        monkeypatch.delenv(name, raising=False)


def test_train_names_all_that_its_machine_lacks(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    said = refused(
        rl_command, "--pretrained", "/nowhere", "--backend", "gpu", "--device", "cuda",
        "--use-wandb", "--output-dir", str(file), "--statistics", "/none.json",
    )  # fmt: skip
    for part in (
        "8 problems; nothing was loaded:", "--device=cuda: this machine has no CUDA",
        f"{file} is a file", "no login for W&B at api.wandb.ai", "torch sees no CUDA GPU",
        "GPU PhysX library", "no Vulkan device",
        "--pretrained: /nowhere: this folder does not exist", "--statistics /none.json",
    ):  # fmt: skip
        assert part in said


def test_a_gpu_that_must_draw_is_looked_for_first() -> None:
    train = ("--pretrained", "/nowhere", "--backend", "cpu", "--render", "gpu")
    for command, argv in (
        (rl_command, train),
        (evaluate_command, ("--checkpoint", "/nowhere", "--render", "gpu")),
    ):
        assert "--render gpu: this machine has no CUDA GPU to draw on" in refused(command, *argv)


def test_sft_names_model_and_data_at_once(tmp_path: Path) -> None:
    said = refused(
        sft_command, "--backend", "openvla", "--model", "/nowhere", "--data-root", "/nothing",
        "--output-dir", str(tmp_path / "run"),
    )  # fmt: skip
    assert "--model: /nowhere: this folder does not exist" in said
    assert "--data-root: /nothing: this folder does not exist" in said
    assert not (tmp_path / "run").exists()


def test_evaluate_names_checkpoint_and_device_at_once(tmp_path: Path) -> None:
    argv = ("--checkpoint", "/nowhere", "--device", "cuda:7", "--output", str(tmp_path / "out"))
    said = refused(evaluate_command, *argv)
    assert "--device=cuda:7: this machine has no CUDA device" in said
    assert "/nowhere: this folder does not exist" in said


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (("evaluate", "--checkpoint", "/nowhere"), ExitCode.POLICY_LOAD),
        (("merge", "/nowhere", "/nowhere/else"), ExitCode.POLICY_LOAD),
        (("train", "--lora-rank", "0"), ExitCode.CONFIG),
        (("train", "--pretrained", "/nowhere", "--backend", "cpu"), ExitCode.POLICY_LOAD),
    ],
)
def test_an_answer_comes_before_torch_and_the_simulation_are_imported(
    tmp_path: Path, argv: tuple[str, ...], code: ExitCode
) -> None:
    more = () if argv[0] in ("evaluate", "merge") else ("--output-dir", str(tmp_path / "run"))
    done = subprocess.run(
        [sys.executable, "-c", CODE, *argv, *more], cwd=ROOT, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_single_problem_keeps_its_kind_and_the_first_of_several_decides_the_code() -> None:
    full, odd = OutputError("full"), ConfigError("odd")
    with pytest.raises(OutputError, match="full"):
        preflight.raise_all(iter([full]), iter([]))
    with pytest.raises(PreflightError) as caught:
        preflight.raise_all(iter([full]), iter([odd]))
    assert caught.value.exit_code == ExitCode.OUTPUT
    preflight.raise_all(iter([]))


@pytest.mark.parametrize(("wrong", "tries"), [(("--backend", "gpu"), 1), ((), hub.TRIES)])
def test_a_hub_that_is_away_is_asked_once_where_something_else_is_wrong(
    wrong: tuple[str, ...], tries: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def no_answer(*_: object, **options: object) -> None:
        asked.append(options["timeout"])
        raise httpx2.ConnectError("no route")

    monkeypatch.setattr(HfApi, "repo_info", no_answer)
    monkeypatch.setattr(hub, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(hub, "_recent", {})
    argv = ("--pretrained", "owner/name", "--backend", "cpu", "--output-dir", str(tmp_path / "run"))
    said = refused(rl_command, *argv, *wrong)
    assert "the Hub did not answer" in said
    assert len(asked) == tries
    assert (hub.ONE_TRY_S in asked) == bool(wrong)


@pytest.mark.parametrize(
    ("environ", "missing"),
    [
        ({}, True), ({"WANDB_API_KEY": "a"}, False), ({"WANDB_MODE": "offline"}, False),
        ({"WANDB_BASE_URL": "https://wandb.example"}, True),
    ],
)  # fmt: skip
def test_w_and_b_needs_a_login_only_online(environ: dict[str, str], missing: bool) -> None:
    assert (settings.wandb_login_problem(environ) is not None) == missing


def test_a_netrc_is_a_login_for_its_host_alone(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    environ = {"NETRC": str(tmp_path / "netrc")}
    assert settings.wandb_login_problem(environ) is None
    assert settings.wandb_login_problem(environ | {"WANDB_BASE_URL": "https://b.example"})
