"""`train`: a run writes policies and files, and says what is wrong with its configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rl_rig
import torch
import training_rig
from places import ROOT

from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.policies.load import load_policy
from crane_x7_vla_rl.policies.openvla.weights import loading
from crane_x7_vla_rl.scenes import Variation
from crane_x7_vla_rl.training import cli
from crane_x7_vla_rl.training.checkpoints import save as checkpoint
from crane_x7_vla_rl.training.checkpoints import training_state
from crane_x7_vla_rl.training.errors import ExitCode, OutputError
from crane_x7_vla_rl.training.rl import command as rl_command
from crane_x7_vla_rl.types import JointState, Observation

pytestmark = pytest.mark.timeout(training_rig.PATIENCE_S + 100)


@pytest.fixture
def whole() -> Path:
    """Return the folder of a run that was never stopped."""
    return rl_rig.whole()


def test_every_checkpoint_is_a_policy_that_has_moved(whole: Path) -> None:
    names = sorted(path.name for path in whole.glob("checkpoint*"))
    assert names == ["checkpoint_2", "checkpoint_best", "checkpoint_final"]
    state = np.array([0, 0.4, 0, -2, 0, -0.8, 1.6, 0.3])
    seen = Observation(
        np.full((48, 48, 3), 90, np.uint8), JointState(state, np.zeros(8)), "lift the red cube", 0.0
    )
    for name in (*names, "last"):
        assert checkpoint.problem(whole / name) is None
        (chunk,) = load_policy("openvla", ModelOptions(path=str(whole / name))).predict([seen])
        assert chunk.position_rad.shape == (1, 8)
    before, after = loading.load(rl_rig.base()), loading.load(whole / "last")
    old, new = before.model.state_dict(), after.model.state_dict()
    assert any(not torch.equal(old[name], new[name]) for name in old)


def test_files_tell_the_whole_story(whole: Path) -> None:
    lines = rl_rig.figures(whole)
    assert [one["step"] for one in lines] == [1, 2, 3, 4]
    assert [one["env_steps"] for one in lines] == [12, 24, 36, 48]
    assert lines[3]["evaluation_success"] is not None
    assert all(one["episode_steps"] <= 3 for one in lines), "0.6 s at 5 Hz"
    evaluated = json.loads((whole / "evaluation/update_4/results.json").read_text())
    assert evaluated["world"]["episode_s"] is None, "the task's own time counts"
    assert all(one["policy_grad_norm"] > 0 for one in lines)
    assert (whole / "curves.png").stat().st_size > 1000
    assert list((whole / "evaluation/update_4/videos").glob("*.mp4"))


def test_a_run_whose_time_is_up_ends_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crane_x7_vla_rl.sim.vector.make.make", lambda _: rl_rig.Scripted({}))
    more = ("--num-updates", "9999", "--time-limit-minutes", "0.001", "--save-every", "9999")
    rl_rig.train(tmp_path / "run", *more)
    assert checkpoint.problem(tmp_path / "run/checkpoint_final") is None
    assert checkpoint.step_of(tmp_path / "run/last") == len(rl_rig.figures(tmp_path / "run"))


def test_learning_rates_sink_from_update_to_update_where_they_are_annealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crane_x7_vla_rl.sim.vector.make.make", lambda _: rl_rig.Scripted({}))
    run = tmp_path / "run"
    rl_rig.train(run, "--anneal", "--learning-rate", "1e-3", "--num-updates", "4")
    rates = [one["learning_rate"] for one in rl_rig.figures(run)]
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    groups = training_state.read_tensors(run / "last")[0]["param_groups"]
    assert groups[0]["lr"] == pytest.approx(0.25e-3)


def test_w_and_b_gets_figures_and_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb  # takes a second, in every worker if it were above

    wandb.teardown()  # it reads variables once
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setattr("crane_x7_vla_rl.sim.vector.make.make", lambda _: rl_rig.Scripted({}))
    run = tmp_path / "run"
    try:
        rl_rig.train(run, "--num-updates", "1", "--use-wandb", "--wandb-artifacts", "every-save")
    finally:
        wandb.teardown()
    (recorded,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    said = recorded.read_bytes()
    for text in (b"train/env_steps", b"train/approx_kl", b"checkpoint_final"):
        assert text in said
    assert "wandb sync" in (run / "not-uploaded.txt").read_text()


def test_a_run_is_never_overwritten(whole: Path) -> None:
    with pytest.raises(OutputError, match=r"checkpoint_final; .*--resume auto"):
        rl_rig.train(whole)


# --- flags and files ------------------------------------------------------------------------------


def read(*argv: str) -> Any:
    import argparse

    parser = argparse.ArgumentParser()
    rl_command.add_arguments(parser)
    return rl_command.read(parser.parse_args(argv))[0]


def test_the_documented_command_line_is_understood() -> None:
    config = read(
        "--pretrained", "openvla/openvla-7b", "--simulator", "maniskill", "--env-id",
        "PickPlace-CRANE-X7", "--backend", "gpu", "--num-parallel-envs", "4", "--num-updates",
        "1000", "--use-wandb", "--output-dir", "/workspace/vla-rl/outputs",
    )  # fmt: skip
    assert config.output_dir == Path("/workspace/vla-rl/outputs/crane_x7_vla_rl")
    assert config.start.model == "openvla/openvla-7b"
    assert config.logging.use_wandb
    assert read("--sft-checkpoint", "here").start.model == "here"


@pytest.mark.parametrize(
    ("name", "task"),
    [("rl_tiny", "Lift-CRANE-X7"), ("rl_tiny_pick_place", "PickPlace-CRANE-X7")],
)
def test_the_small_policies_files_are_configurations(name: str, task: str) -> None:
    path = ROOT / "configs" / f"{name}.yaml"
    config = read("--config", str(path))
    assert (config.env.env_id, config.env.backend) == (task, "cpu")
    assert config.lora.enabled
    longest = config.env.world(5).max_steps
    # A rollout in which no episode comes to its end has little to say.
    assert config.training.rollout_steps >= longest


def test_the_shipped_policy_practises_with_a_late_link_and_only_its_head_learns() -> None:
    config = read("--config", str(ROOT / "configs/rl_small_late.yaml"))
    assert config.training.head_only
    assert not config.lora.enabled
    assert config.env.vector(10, 0, 0).delay == 2
    assert config.ppo.discounts(0.4)[1] == pytest.approx(0.67, abs=0.01)


@pytest.mark.parametrize(("delay_s", "hz", "steps"), [(0.1, 10, 1), (0.11, 10, 2), (0.3, 5, 2)])
def test_a_delay_is_rounded_up_to_steps(delay_s: float, hz: int, steps: int) -> None:
    config = read("--backend", "cpu", "--delay-s", str(delay_s))
    assert config.env.vector(hz, 0, 0).delay == steps
    assert config.env.vector(hz, 0, 0).least_delay is None
    config = read("--backend", "cpu", "--delay-s", "0.5", "--least-delay-s", str(delay_s))
    assert config.env.vector(hz, 0, 0).least_delay == steps


def test_scenes_differ_as_the_flags_say() -> None:
    config = read("--backend", "cpu", "--light", "0.75", "--cube-size", "0.85")
    assert config.env.world(10).variation == Variation(light=0.75, cube_size=0.85)
    assert read("--backend", "cpu", "--vary", "0.5").env.world(10).vary == 0.5
    assert config.env.vector(10, 0, 0).world.variation.light == 0.75


@pytest.mark.parametrize("name", ["default", "fast", "full"])
def test_a_template_is_a_configuration(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    assert cli.main(["config", "--template", name, "--output", str(path)]) == 0
    changed = read("--config", str(path), "--num-updates", "7")
    assert changed.training.num_updates == 7
    assert changed.env.backend == ("cpu" if name == "fast" else "gpu")
    assert cli.main(["config", "--output", str(path)]) == ExitCode.OUTPUT


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--env-id", "Lift-CRANE"], "did you mean Lift-CRANE-X7"),
        (["--colours", "red,pink"], "'pink'"),
        (["--colours", ","], "env.colours has ''; known: red, green, blue"),
        (["--lora-dropout", "0.1"], "expected 0"),
        (["--override", "ppo.minibatch=3"], "minibatch_size"),
        (["--camera-size", "big"], "320x240"),
        (["--episode-s", "0"], "env.episode_s is 0"),
        (["--wandb-artifacts", "end"], "--use-wandb"),
        (["--evaluate-first-seed", "5"], "evaluation.first_seed is 5, expected 1000000 or more"),
        (["--num-parallel-envs", "0"], "env.num_parallel_envs is 0, expected 1 or more"),
    ],
)
def test_a_wrong_configuration_is_named(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *flags]) == ExitCode.CONFIG
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_patches_are_not_kept_where_vision_learns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = rl_rig.flags(tmp_path / "run", "--keep-patches")
    assert cli.main(["train", *argv]) == ExitCode.CONFIG
    assert "lora.targets" in capsys.readouterr().err


def test_what_cannot_change_on_the_way_is_refused(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "--resume", str(whole), "--lora-rank", "8"]) == ExitCode.CONFIG
    assert "lora.rank: 4 → 8" in capsys.readouterr().err
