"""Several processes learn what one would, and none of them outlives another."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import training_rig as rig
from processes import children
from warm_process import WarmProcess

from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.policies.load import load_policy
from crane_x7_vla_rl.training.checkpoints import save as checkpoint

pytestmark = pytest.mark.timeout(rig.PATIENCE_S + 100)
FSDP = ("--sharding", "fsdp")
NO_DROPOUT = ("--lora-dropout", "0")
SLOW = pytest.mark.slow


def finish(process: subprocess.Popen[str] | WarmProcess) -> str:
    """Return what the processes said; end them if they do not end."""
    try:
        said, _ = process.communicate(timeout=rig.PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        pytest.fail(f"still running after {rig.PATIENCE_S} s: {said}")
    return said


def train_together(*argv: str) -> str:
    """Train in two processes; return what they said."""
    with rig.together(argv, processes=2) as processes:
        said = "".join(finish(process) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], said
    return said


def wait_for_first_save(run: Path, process: subprocess.Popen[str] | WarmProcess) -> None:
    deadline_s = time.monotonic() + rig.PATIENCE_S
    while not (run / "checkpoint-2").exists():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(NO_DROPOUT, id="lora"),
        pytest.param(("--no-use-lora", "--learning-rate", "1e-3"), id="whole", marks=SLOW),
        pytest.param((*NO_DROPOUT, *FSDP), id="lora-fsdp", marks=SLOW),
        pytest.param(("--no-use-lora", "--learning-rate", "1e-3", *FSDP), id="whole-fsdp"),
    ],
)
def test_two_processes_equal_one_with_twice_the_batch(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    rig.train(one, "--batch-size", "4", *(word for word in options if word not in FSDP))
    train_together(*rig.flags(two, "--batch-size", "2", *options))
    alone, together = rig.losses(one), rig.losses(two)
    assert len(alone) == 8
    assert np.allclose(alone, together, rtol=0, atol=1e-5), (alone, together)
    norms = [[figures["grad_norm"] for figures in rig.metrics(run)] for run in (one, two)]
    assert np.allclose(*norms, rtol=1e-3)
    load_policy("openvla", ModelOptions(path=str(two / "last")))


@pytest.mark.slow
@pytest.mark.parametrize("options", [NO_DROPOUT, ("--no-use-lora",)], ids=["lora", "whole"])
def test_layers_spread_over_processes_also_learn_in_bfloat16(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    """As on CUDA: adapters in float32 beside weights in bfloat16, or float32 under autocast."""
    one, two = tmp_path / "one", tmp_path / "two"
    halved = (*options, "--precision", "bf16", "--max-steps", "4")
    rig.train(one, "--batch-size", "4", *halved)
    train_together(*rig.flags(two, "--batch-size", "2", *halved, *FSDP))
    assert np.allclose(rig.losses(one), rig.losses(two), rtol=0, atol=0.01)


def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    rig.train(whole, *NO_DROPOUT)
    rig.train(moved, *NO_DROPOUT, "--max-steps", "3")
    said = train_together(
        "--resume-from-checkpoint", str(moved), "--batch-size", "2", "--max-steps", "8"
    )
    assert "processes: 1 → 2" in said
    assert "training.batch_size: 4 → 2" in said
    assert len(rig.losses(moved)) == 8
    assert rig.losses(moved)[:3] == rig.losses(whole)[:3]


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=SLOW)])
def test_when_one_process_dies_all_end_and_not_with_0(tmp_path: Path, victim: int) -> None:
    run = tmp_path / "run"
    process = rig.torchrun(rig.flags(run, "--max-steps", "1000000", "--save-steps", "2"), 2)
    wait_for_first_save(run, process)
    workers = children(process.pid)
    assert len(workers) == 2
    os.kill(workers[victim], signal.SIGKILL)
    said = finish(process)
    assert process.returncode not in (0, None), said
    assert not any(map(psutil.pid_exists, workers))
    newest = checkpoint.newest(run)
    assert newest is not None
    load_policy("openvla", ModelOptions(path=str(newest)))


@pytest.mark.parametrize("by_torchrun", [False, pytest.param(True, marks=SLOW)])
def test_sigterm_to_all_processes_saves_what_they_agree_on(
    tmp_path: Path, by_torchrun: bool
) -> None:
    run = tmp_path / "run"
    flags = rig.flags(run, "--max-steps", "1000000", "--save-steps", "2")
    with contextlib.ExitStack() as stack:
        if by_torchrun:
            processes = [rig.torchrun(flags, 2)]
        else:
            processes = stack.enter_context(rig.together(flags, processes=2))
        wait_for_first_save(run, processes[0])
        for process in processes:
            process.send_signal(signal.SIGTERM)
        said = "".join(finish(process) for process in processes)
    done = len(rig.losses(run))
    assert checkpoint.step_of(run / "last") == done, said
    assert f"stopped after {done} of" in said
    load_policy("openvla", ModelOptions(path=str(run / "last")))
