"""`train` in several processes does what one would with all of their environments."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from crane_x7_vla_rl.policies.base import ModelOptions, load_policy
from crane_x7_vla_rl.policies.openvla import loading
from crane_x7_vla_rl.training import checkpoint
from tests import rl_rig, training_rig
from tests.warm_process import WarmProcess

pytestmark = pytest.mark.timeout(training_rig.PATIENCE_S + 100)
EACH = ("--num-parallel-envs", "2")
ALL = ("--num-parallel-envs", "4")
TIMES = {"env_steps_s", "simulate_s", "infer_s", "learn_s", "update_s"}
ELSEWHERE = {"policy_grad_norm"}
"""Measured on other samples: each process probes its own."""
FREED = ("--no-use-lora", "--lora-rank", "4", "--learning-rate", "1e-4")


def finish(process: subprocess.Popen[str] | WarmProcess) -> str:
    """Return what the process said; end it if it does not end."""
    try:
        said, _ = process.communicate(timeout=training_rig.PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        pytest.fail(f"still running after {training_rig.PATIENCE_S} s: {said}")
    return said


def train_together(*argv: str) -> str:
    """Train in two processes; return what they said."""
    with training_rig.together(argv, processes=2, command="train") as processes:
        said = "".join(finish(process) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], said
    return said


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Return all weights of the policy that a run ended with."""
    return dict(loading.load(run / "last").model.state_dict())


def assert_alike(run: Path, other: Path) -> None:
    """Assert that both runs saw the same, and learned the same to 1e-5."""
    lines, others = training_rig.metrics(run), training_rig.metrics(other)
    assert len(lines) == len(others) > 0
    for one, two in zip(lines, others, strict=True):
        for name in one.keys() - TIMES - ELSEWHERE:
            found, wanted = two[name], one[name]
            if isinstance(wanted, float):
                wanted = pytest.approx(wanted, rel=1e-3, abs=1e-5)
            assert found == wanted, (name, one, two)
    mine, theirs = weights(run), weights(other)
    assert mine.keys() == theirs.keys()
    distances = {name: float((mine[name] - theirs[name]).abs().max()) for name in mine}
    farthest = max(distances, key=distances.__getitem__)
    assert distances[farthest] <= 1e-5, (farthest, distances[farthest])
    before = loading.load(rl_rig.base()).model.state_dict()
    moved = max(float((mine[name] - before[name]).abs().max()) for name in mine)
    assert moved > 1e-4, "nothing was learned"


@pytest.mark.parametrize("options", [(), FREED], ids=["lora", "whole"])
def test_two_processes_equal_one_with_twice_the_environments(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    """From flags to checkpoint, in a real simulation, with either way to spread a model."""
    same = ("--num-updates", "2", *options)
    rl_rig.train(tmp_path / "one", *ALL, *same)
    for sharding in ("ddp", "fsdp"):
        run = tmp_path / sharding
        train_together(*rl_rig.flags(run, *EACH, *same, "--sharding", sharding))
        assert_alike(tmp_path / "one", run)


def test_two_processes_go_on_bit_for_bit(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train_together(*rl_rig.flags(whole, *EACH, "--save-every", "1", "--num-updates", "2"))
    shutil.copytree(whole, resumed, symlinks=True)
    shutil.rmtree(resumed / "checkpoint_final")
    train_together("--resume", str(resumed / "checkpoint_1"))
    lines, others = (
        [{name: one[name] for name in one.keys() - TIMES} for one in training_rig.metrics(run)]
        for run in (whole, resumed)
    )
    assert lines == others
    mine, theirs = weights(whole), weights(resumed)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and not lost."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    """Whether it runs, and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_when_one_process_dies_all_end_and_the_checkpoint_stays(tmp_path: Path) -> None:
    run = tmp_path / "run"
    endless = rl_rig.flags(run, *EACH, "--num-updates", "1000000", "--save-every", "1")
    process = training_rig.torchrun(endless, 2, command="train")
    end_s = time.monotonic() + training_rig.PATIENCE_S
    while not (run / "checkpoint_1").exists():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < end_s
        time.sleep(0.05)
    ranks = children(process.pid)
    assert len(ranks) == 2
    below = [pid for rank in ranks for pid in children(rank)]
    os.kill(ranks[1], signal.SIGKILL)
    said = finish(process)
    assert process.returncode not in (0, None), said
    assert f"pid: {ranks[1]}" in said
    assert "Signal 9 (SIGKILL)" in said
    while any(map(is_alive, ranks + below)):
        assert time.monotonic() < end_s + training_rig.PATIENCE_S, "simulations outlive training"
        time.sleep(0.05)
    newest = checkpoint.newest(run)
    assert newest is not None
    load_policy("openvla", ModelOptions(path=str(newest)))
