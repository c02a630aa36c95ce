"""`train` in several processes does what one would with all of their environments."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from crane_x7_vla_rl.policies.openvla import loading
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
