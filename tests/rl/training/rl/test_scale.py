"""`train` in several processes does what one would with all of their environments."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import rl_rig
import torch
import training_rig
from processes import children, is_alive
from warm_process import WarmProcess

from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.policies.load import load_policy
from crane_x7_vla_rl.policies.openvla.weights import loading
from crane_x7_vla_rl.training.checkpoints import save as checkpoint

PATIENCE_S = 3 * training_rig.PATIENCE_S
pytestmark = pytest.mark.timeout(3 * PATIENCE_S)
EACH = ("--num-parallel-envs", "2")
ALL = ("--num-parallel-envs", "4")
TIMES = {"env_steps_s", "simulate_s", "infer_s", "learn_s", "update_s"}
ELSEWHERE = {"policy_grad_norm"}
"""Measured on other samples: each process probes its own."""
EVALUATED = ("--evaluate-every", "2", "--evaluate-episodes", "1", "--evaluate-videos", "0")
FREED = ("--no-use-lora", "--learning-rate", "5e-6")
"""Slowly: AdamW makes whole steps even of gradients that are 0 but for rounding."""


def finish(process: subprocess.Popen[str] | WarmProcess) -> str:
    """Return what the process said; end it if it does not end."""
    try:
        said, _ = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        pytest.fail(f"still running after {PATIENCE_S} s: {said}")
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


def timeless(run: Path) -> list[dict[str, Any]]:
    """Return the figures of every update that do not depend on the machine's mood."""
    return [{name: one[name] for name in one.keys() - TIMES} for one in training_rig.metrics(run)]


def assert_alike(run: Path, other: Path) -> None:
    """Assert that both runs saw the same, and learned the same to 1e-5."""
    lines, others = timeless(run), timeless(other)
    assert len(lines) == len(others) > 0
    for one, two in zip(lines, others, strict=True):
        for name in one.keys() - ELSEWHERE:
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
    assert moved > 2e-5, "nothing was learned"


@pytest.mark.parametrize("resumes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_equal_one_with_twice_the_environments(tmp_path: Path, resumes: bool) -> None:
    """From flags to checkpoint, in a real simulation; and they resume bit for bit."""
    one, two, resumed = (tmp_path / name for name in ("one", "two", "resumed"))
    same = ("--num-updates", "2", "--save-every", "1")
    rl_rig.train(one, *ALL, *same)
    train_together(*rl_rig.flags(two, *EACH, *same))
    assert_alike(one, two)
    if not resumes:
        return
    shutil.copytree(two, resumed, symlinks=True)
    shutil.rmtree(resumed / "checkpoint_final")
    train_together("--resume", str(resumed / "checkpoint_1"))
    assert timeless(resumed) == timeless(two)
    mine, theirs = weights(resumed), weights(two)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.slow  # by default, test_ppo_scale.py spreads a model over two processes
def test_two_processes_with_half_a_model_each_equal_one_with_all(tmp_path: Path) -> None:
    """FSDP, all weights learning: rollouts gather them, evaluation by the first process, too."""
    one, two = tmp_path / "one", tmp_path / "two"
    same = ("--num-updates", "2", *FREED, *EVALUATED)
    rl_rig.train(one, *ALL, *same)
    train_together(*rl_rig.flags(two, *EACH, *same, "--sharding", "fsdp"))
    assert_alike(one, two)


@pytest.mark.slow  # by default, the same in sft/test_scale.py: torchrun and the saves are shared
def test_when_one_process_dies_all_end_and_the_checkpoint_stays(tmp_path: Path) -> None:
    run = tmp_path / "run"
    endless = rl_rig.flags(run, *EACH, "--num-updates", "1000000", "--save-every", "1")
    process = training_rig.torchrun(endless, 2, command="train")
    end_s = time.monotonic() + PATIENCE_S
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
        assert time.monotonic() < end_s + PATIENCE_S, "simulations outlive training"
        time.sleep(0.05)
    newest = checkpoint.newest(run)
    assert newest is not None
    load_policy("openvla", ModelOptions(path=str(newest)))
