"""A run learns, writes policies that drive, and resumes as if it had never stopped."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import training_rig as rig
import yaml
from warm_process import WarmProcess

from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.policies import about
from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.policies.load import load_policy
from crane_x7_vla_rl.policies.openvla.codec import PolicySpec
from crane_x7_vla_rl.policies.openvla.run.evaluate import evaluate
from crane_x7_vla_rl.policies.openvla.weights import loading
from crane_x7_vla_rl.training.checkpoints import save as checkpoint
from crane_x7_vla_rl.training.config.sections import ComputeConfig, LoraConfig
from crane_x7_vla_rl.training.errors import (
    ConfigError,
    ExitCode,
    NotFiniteError,
    OutputError,
    ResumeError,
)
from crane_x7_vla_rl.training.learner import ModelSpec, prepare
from crane_x7_vla_rl.training.sft.loss import SftLearner

pytestmark = pytest.mark.timeout(rig.PATIENCE_S + 100)
WHOLE = ("--no-use-lora", "--learning-rate", "1e-3")
KINDS = [pytest.param((), id="lora"), pytest.param(WHOLE, id="whole")]


def folders(run: Path) -> list[str]:
    return sorted(path.name for path in run.glob("checkpoint-*"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_checkpoint_is_a_policy(tmp_path: Path, kind: tuple[str, ...]) -> None:
    run = tmp_path / "run"
    rig.train(run, "--chunk-steps", "2", *kind)
    assert folders(run) == ["checkpoint-3", "checkpoint-6", "checkpoint-final"]
    for name in (*folders(run), "last"):
        assert checkpoint.problem(run / name) is None
        policy = load_policy("openvla", ModelOptions(path=str(run / name)))
        (chunk,) = policy.predict([rig.observation()])
        assert chunk.position_rad.shape == (2, 8)
    loaded = loading.load(run / "last")
    assert loaded.model.crop
    assert PolicySpec.of(loaded.layout) == PolicySpec(
        state_tokens=True, chunk_steps=2, period_s=0.1
    )
    assert set(loaded.model.norm_stats["crane_x7"]) >= {"action", "proprio", "num_transitions"}


def test_a_run_can_be_moved_with_its_base(tmp_path: Path) -> None:
    rig.train(tmp_path / "run", "--max-steps", "1")
    named = json.loads((tmp_path / "run" / "last" / "adapter_config.json").read_text())
    assert not os.path.isabs(named["base_model_name_or_path"])


def test_a_checkpoint_keeps_the_scene_of_its_demonstrations(tmp_path: Path) -> None:
    demos = tmp_path / "demos"
    shutil.copytree(rig.data(), demos)
    world = {"task": "Lift-CRANE-X7", "image_size": [320, 240], "colours": ["red", "blue"]}
    (demos / about.DEMOS).write_text(json.dumps({"world": world}))
    rig.train(tmp_path / "run", "--max-steps", "1", "--data-root", str(demos))
    last = tmp_path / "run" / "last"
    assert checkpoint.problem(last) is None
    assert about.said_by(last)["image_size"] == about.Said((320, 240), about.DEMOS)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_what_it_is_shown(tmp_path: Path, kind: tuple[str, ...]) -> None:
    rig.train(
        tmp_path / "run", "--max-steps", "60", "--batch-size", "16", "--learning-rate", "1e-2",
        "--lora-rank", "8", "--save-steps", "100", *kind,
    )  # fmt: skip
    losses = rig.losses(tmp_path / "run")
    assert losses[0] > 5.0  # ln 256 = 5.5 for one who knows nothing
    assert np.mean(losses[-5:]) < losses[0] - 1.5


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_may_learn_gets_a_gradient(tmp_path: Path, kind: tuple[str, ...]) -> None:
    seen = {}

    class Seen(Exception):
        pass

    def look(taught: SftLearner, rate: float) -> None:
        del rate
        named = taught.model.named_parameters()
        seen.update({n: p.grad is not None for n, p in named if p.requires_grad})
        raise Seen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SftLearner, "update", look)
        with pytest.raises(Seen):
            rig.train(tmp_path / "run", *kind)
    assert len(seen) > 20
    assert all(seen.values()), [name for name, had in seen.items() if not had]
    assert all("lora_" in name for name in seen) == (not kind)


def test_the_base_stays_what_it_was_beneath_adapters(tmp_path: Path) -> None:
    before = loading.load(rig.base()).model.state_dict()
    rig.train(tmp_path / "run", "--learning-rate", "1e-2")
    beside = loading.load(tmp_path / "run" / "last", adapter_use="apply").model.state_dict()
    merged = loading.load(tmp_path / "run" / "last").model.state_dict()
    for name, tensor in before.items():
        module, _, leaf = name.rpartition(".")
        inside = beside.get(name, beside.get(f"{module}.base_layer.{leaf}"))
        assert inside is not None
        assert torch.equal(inside, tensor), name
    assert any(not torch.equal(merged[name], before[name]) for name in before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_repeats_the_losses_bit_for_bit(
    tmp_path: Path, kind: tuple[str, ...]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = ("--grad-accumulation-steps", "2", *kind)
    rig.train(whole, *options)
    rig.train(broken, *options, "--max-steps", "8")
    for later in ("checkpoint-final", "checkpoint-6"):
        (broken / later).rename(tmp_path / later)
    rig.again("--resume-from-checkpoint", str(broken / "checkpoint-3"))
    assert rig.losses(whole) == rig.losses(broken)
    assert [m["step"] for m in rig.metrics(broken)] == list(range(1, 9))
    one, other = (loading.load(run / "last").model.state_dict() for run in (whole, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert folders(broken) == folders(whole)


def test_dropout_is_on_and_resumed(tmp_path: Path) -> None:
    """Bit-for-bit resumption means little without random numbers."""
    rig.train(tmp_path / "with", "--lora-dropout", "0.5", "--learning-rate", "1e-2")
    rig.train(tmp_path / "without", "--lora-dropout", "0", "--learning-rate", "1e-2")
    assert rig.losses(tmp_path / "with")[1:] != rig.losses(tmp_path / "without")[1:]


def test_accumulating_equals_a_larger_batch(tmp_path: Path) -> None:
    rig.train(tmp_path / "large", "--batch-size", "8", "--lora-dropout", "0")
    rig.train(
        tmp_path / "small", "--batch-size", "2", "--grad-accumulation-steps", "4",
        "--lora-dropout", "0",
    )  # fmt: skip
    large, small = rig.metrics(tmp_path / "large"), rig.metrics(tmp_path / "small")
    for one, other in zip(large, small, strict=True):
        assert math.isclose(one["loss"], other["loss"], abs_tol=1e-5)
        assert math.isclose(one["grad_norm"], other["grad_norm"], rel_tol=1e-3)


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    for name, more in (("kept", ()), ("again", ("--gradient-checkpointing",))):
        rig.train(tmp_path / name, "--lora-dropout", "0", *more)
    assert np.allclose(
        rig.losses(tmp_path / "kept"), rig.losses(tmp_path / "again"), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_comes_near_float32_and_is_not_it(tmp_path: Path, kind: tuple[str, ...]) -> None:
    for precision in ("fp32", "bf16"):
        rig.train(tmp_path / precision, "--precision", precision, "--lora-dropout", "0", *kind)
    full, half = rig.losses(tmp_path / "fp32"), rig.losses(tmp_path / "bf16")
    assert full != half
    assert np.allclose(full, half, rtol=0, atol=0.1)


@pytest.mark.parametrize("adapted", [True, False])
def test_adapters_are_trained_without_autocast(adapted: bool) -> None:
    """On CUDA it returns float32 from each norm: a waste where frozen weights are in bfloat16."""
    compute = ComputeConfig(precision="bf16", device="cpu")
    spec = ModelSpec(str(rig.base()), LoraConfig(enabled=adapted), compute)
    model = prepare(spec, torch.device("cpu"), None).model
    casts: set[bool] = set()
    for layer in model.language_model.model.layers:
        layer.register_forward_hook(lambda *_: casts.add(torch.is_autocast_enabled("cpu")))
    side = model.config.image_size
    evaluate(model, torch.zeros(1, 6, side, side), [torch.tensor([1, 40])], torch.tensor([[31800]]))
    assert casts == {not adapted}


def test_keep_removes_older_checkpoints(tmp_path: Path) -> None:
    rig.train(tmp_path / "run", "--save-steps", "1", "--max-steps", "5", "--keep", "2")
    assert folders(tmp_path / "run") == ["checkpoint-4", "checkpoint-final"]


def test_an_output_folder_in_use_is_refused(tmp_path: Path) -> None:
    rig.train(tmp_path / "run", "--max-steps", "1")
    with pytest.raises(OutputError, match=r"checkpoint-final; .*--resume auto"):
        rig.train(tmp_path / "run", "--max-steps", "1")


def test_a_finished_run_goes_on_when_it_is_given_more(tmp_path: Path) -> None:
    rig.train(tmp_path / "run", "--max-steps", "2")
    rig.again("--resume-from-checkpoint", str(tmp_path / "run"), "--max-steps", "4")
    assert len(rig.losses(tmp_path / "run")) == 4
    assert checkpoint.step_of(tmp_path / "run" / "checkpoint-final") == 4


def test_a_run_stops_on_its_way_and_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    rig.train(tmp_path / "whole", "--max-steps", "4")
    rig.train(tmp_path / "run", "--max-steps", "4", "--stop-after", "2")
    assert not (tmp_path / "run" / "checkpoint-final").exists()
    assert checkpoint.step_of(tmp_path / "run" / "last") == 2
    rig.again("--resume-from-checkpoint", str(tmp_path / "run"))
    assert checkpoint.step_of(tmp_path / "run" / "checkpoint-final") == 4
    assert rig.losses(tmp_path / "run") == rig.losses(tmp_path / "whole")


def test_a_run_can_go_on_in_another_folder(tmp_path: Path) -> None:
    rig.train(tmp_path / "one", "--max-steps", "2")
    rig.again(
        "--resume-from-checkpoint", str(tmp_path / "one" / "last"), "--max-steps", "3",
        "--output-dir", str(tmp_path / "two"),
    )  # fmt: skip
    assert checkpoint.step_of(tmp_path / "two" / "last") == 3
    assert checkpoint.step_of(tmp_path / "one" / "last") == 2
    load_policy("openvla", ModelOptions(path=str(tmp_path / "two" / "last")))


def test_what_changed_since_the_checkpoint_is_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig.train(tmp_path / "run", "--max-steps", "2")
    with caplog.at_level(logging.WARNING):
        rig.again(
            "--resume-from-checkpoint", str(tmp_path / "run"), "--max-steps", "3",
            "--learning-rate", "1e-3", "--save-steps", "7",
        )  # fmt: skip
    listed = [record.getMessage() for record in caplog.records]
    assert "changed since the checkpoint: training.learning_rate: 0.0005 → 0.001" in listed
    assert "changed since the checkpoint: training.max_steps: 2 → 3" in listed
    assert not [
        text for text in listed if "save_steps" in text
    ]  # it changes nothing that is learned
    saved = yaml.safe_load((tmp_path / "run" / "last" / "train_config.yaml").read_text())
    assert saved["training"]["learning_rate"] == 1e-3


def test_another_model_cannot_be_gone_on_with(tmp_path: Path) -> None:
    rig.train(tmp_path / "run", "--max-steps", "1")
    with pytest.raises(ResumeError, match=r"lora\.rank: 4 → 8; lora\.alpha: 8 → 16"):
        rig.again(
            "--resume-from-checkpoint", str(tmp_path / "run"), "--lora-rank", "8",
            "--lora-alpha", "16",
        )  # fmt: skip


def test_other_data_cannot_be_gone_on_with(tmp_path: Path) -> None:
    rig.train(tmp_path / "run", "--max-steps", "1")
    with pytest.raises(DataError, match="not the data of the run's start"):
        rig.again(
            "--resume-from-checkpoint", str(tmp_path / "run"), "--data-root", str(rig.other_data())
        )


def test_a_loss_that_is_no_number_stops_with_step_episodes_and_the_last_checkpoint(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    rig.train(run, "--max-steps", "2")
    (run / "metrics.jsonl").unlink()
    with pytest.raises(NotFiniteError) as caught:
        rig.again(
            "--resume-from-checkpoint", str(run), "--max-steps", "9", "--learning-rate", "1e30"
        )
    said = str(caught.value)
    assert "the loss is nan" in said or "the loss is inf" in said
    assert "episode " in said
    assert "(frames " in said
    assert str(run / "checkpoint-") in said
    step = int(said.split("update ")[1].split(":")[0])
    assert 3 <= step <= 8
    good = checkpoint.newest(run)
    assert good is not None
    assert checkpoint.step_of(good) < step


def test_a_damaged_checkpoint_gives_way_to_the_newest_complete_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    rig.train(run, "--max-steps", "4", "--save-steps", "2")
    damaged = checkpoint.newest(run)
    assert damaged is not None
    os.truncate(damaged / "training_state/tensors.pt", 10)
    rig.again("--resume-from-checkpoint", str(damaged), "--max-steps", "3")
    assert f"{damaged} is not a complete checkpoint: " in caplog.text
    assert f"the newest complete one is {run / 'checkpoint-2'}; resuming from that" in caplog.text
    assert [entry["step"] for entry in rig.metrics(run)] == [1, 2, 3]


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"give --image-size {rig.SIDE}x{rig.SIDE}"):
        rig.train(tmp_path / "run", "--image-size", "224x224")


def test_an_adapter_is_no_base_for_another(tmp_path: Path) -> None:
    rig.train(tmp_path / "run", "--max-steps", "1")
    with pytest.raises(ConfigError, match=r"which is an adapter.*merge"):
        rig.train(tmp_path / "next", "--model", str(tmp_path / "run" / "last"))


def wait_for(condition: Callable[[], bool], process: WarmProcess) -> None:
    """Wait until the condition holds, or fail with what the process said."""
    end_s = time.monotonic() + rig.PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end_s, f"it did not come within {rig.PATIENCE_S} s"
        time.sleep(0.02)


def steps_done(run: Path) -> int:
    last = run / "last"
    return checkpoint.step_of(last) if last.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_with_0(tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    process = rig.start(rig.flags(run, "--max-steps", "100000", "--save-steps", "2"))
    wait_for((run / "checkpoint-2").exists, process)
    process.send_signal(number)
    said, _ = process.communicate(timeout=rig.PATIENCE_S)
    assert process.returncode == 0, said
    done = len(rig.losses(run))
    assert checkpoint.step_of(run / "last") == done
    assert f"stopped after {done} of 100000 updates" in said


def test_kill_9_and_resume_repeat_the_losses(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = ("--save-steps", "1", "--max-steps", "12")
    rig.train(whole, *options)
    process = rig.start(rig.flags(killed, *options))
    wait_for((killed / "checkpoint-2").exists, process)
    process.kill()
    process.communicate()
    rig.again("--resume-from-checkpoint", str(killed))
    assert rig.losses(killed) == rig.losses(whole)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_is_killed_again_and_again_learns_the_same(tmp_path: Path) -> None:
    """As `test_checkpoint` does with plain files, here with a real trainer saving all the time."""
    draw = random.Random(0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = ("--save-steps", "1", "--max-steps", "40", "--keep", "2")
    rig.train(whole, *options)
    argv = rig.flags(killed, *options)
    for _ in range(15):
        begun = steps_done(killed)
        process = rig.start(argv)
        wait_for(lambda begun=begun: steps_done(killed) > begun, process)
        time.sleep(draw.uniform(0, 0.1))
        process.kill()
        process.communicate()
        load_policy("openvla", ModelOptions(path=str(killed / "last")))
        argv = ["--resume-from-checkpoint", str(killed)]
        newest = checkpoint.newest(killed)
        if newest is not None and newest.name == checkpoint.FINAL:
            break
    if newest is None or newest.name != checkpoint.FINAL:
        rig.again(*argv)
    assert rig.losses(killed) == rig.losses(whole)


@pytest.mark.parametrize("room", [20_000, 100])
def test_a_full_disk_stops_the_run_and_names_the_last_checkpoint(tmp_path: Path, room: int) -> None:
    """Where there is room for 100 bytes, figures of an update cannot be written any more."""
    run = tmp_path / "run"
    rig.train(run, "--max-steps", "2")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(OutputError, match="free some space") as caught:
            rig.again("--resume-from-checkpoint", str(run), "--max-steps", "4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(run / "checkpoint-final") in str(caught.value)
    load_policy("openvla", ModelOptions(path=str(run / "last")))
    assert not list(run.glob(".*"))
    rig.again("--resume-from-checkpoint", str(run), "--max-steps", "4")
    assert checkpoint.step_of(run / "last") == 4


def test_a_corrupt_episode_stops_with_its_name_or_is_left_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"file-000\.mp4|episode"):
        rig.train(tmp_path / "run", "--data-root", str(rig.corrupt_data()))


def test_the_command_line_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    process = rig.start(rig.flags(tmp_path / "run", "--model", str(tmp_path / "nothing")))
    said, _ = process.communicate(timeout=rig.PATIENCE_S)
    assert process.returncode == ExitCode.POLICY_LOAD
    assert said.splitlines()[-1].startswith("crane-x7-vla-rl sft: ")
    assert "Traceback" not in said


def test_neither_wandb_nor_tensorboard_is_imported_unasked(tmp_path: Path) -> None:
    flags = rig.flags(tmp_path / "run", "--max-steps", "1")
    process = rig.start(flags, first=("training_rig", "tell_trackers"))
    said, _ = process.communicate(timeout=rig.PATIENCE_S)
    assert process.returncode == 0, said
    assert said.splitlines()[-1] == "trackers: []"


def test_the_whole_configuration_is_printed_and_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        rig.train(tmp_path / "run", "--max-steps", "3")
    printed = next(r.getMessage() for r in caplog.records if "configuration:" in r.getMessage())
    saved = (tmp_path / "run" / "train_config.yaml").read_text()
    assert saved.rstrip() in printed
    assert yaml.safe_load(saved)["training"]["warmup_ratio"] == 0.1
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("step:3 ")]
    for name in ("smpl:12", "ep:1", "epch:0.27", "loss:", "grdn:", "lr:", "updt_s:", "data_s:"):
        assert name in line, line
    *_, figures = rig.metrics(tmp_path / "run")
    assert figures["samples"] == 12
    assert math.isclose(figures["epoch"], 12 / (rig.EPISODES * rig.FRAMES))
