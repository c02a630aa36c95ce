"""Fine-tuning that runs out of memory names the flags, saves what was learned, and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import training_rig as rig

from crane_x7_vla_rl.training import cli
from crane_x7_vla_rl.training.checkpoints import save as checkpoint
from crane_x7_vla_rl.training.errors import ExitCode
from crane_x7_vla_rl.training.sft.loss import SftLearner

pytestmark = pytest.mark.timeout(rig.PATIENCE_S + 100)
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
CPU = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 4000 bytes")


def fail(patch: pytest.MonkeyPatch, error: BaseException, call: int, part: str) -> None:
    """Let the call with this number, from 0, raise instead."""
    real, calls = getattr(SftLearner, part), iter(range(99))

    def failing(*args: Any) -> Any:
        if next(calls) == call:
            raise error
        return real(*args)

    patch.setattr(SftLearner, part, failing)


@pytest.mark.parametrize(
    ("error", "part"), [(CUDA, "backward"), (CPU, "backward"), (MemoryError(), "update")]
)
def test_what_was_learned_is_saved_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    error: BaseException, part: str,
) -> None:  # fmt: skip
    run = tmp_path / "run"
    flags = ("--max-steps", "3", "--save-steps", "9", "--lora-dropout", "0")
    with monkeypatch.context() as patch:
        fail(patch, error, 2, part)
        assert cli.main(["sft", *rig.flags(run, *flags)]) == ExitCode.MEMORY
    said = capsys.readouterr().err
    assert "update 3: out of memory (" in said
    assert str(error) in said
    assert "GB were in use); lower --batch-size, now " in said
    assert "raise --grad-accumulation-steps, now 1, by the same factor" in said
    assert "or add --gradient-checkpointing, or lower --lora-rank, now " in said
    assert f"resume with --resume-from-checkpoint {run / 'checkpoint-2'}" in said
    assert checkpoint.problem(run / "checkpoint-2") is None
    rig.again("--resume-from-checkpoint", str(run))
    whole = tmp_path / "whole"
    rig.train(whole, *flags)
    assert rig.losses(run) == rig.losses(whole)


def test_a_first_update_that_does_not_fit_saves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail(monkeypatch, CUDA, 0, "backward")
    run = tmp_path / "run"
    flags = ("--batch-size", "1", "--gradient-checkpointing", "--no-use-lora")
    assert cli.main(["sft", *rig.flags(run, *flags)]) == ExitCode.MEMORY
    said = capsys.readouterr().err
    assert "update 1: out of memory (CUDA out of memory. Tried to allocate 2.00 GiB; " in said
    assert "GB were in use); train adapters (--use-lora), and start again" in said
    assert not list(run.glob("checkpoint*"))


def test_an_error_of_ours_is_not_taken_for_a_lack_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, RuntimeError("shapes do not match"), 0, "backward")
    with pytest.raises(RuntimeError, match=r"^shapes do not match"):
        rig.train(tmp_path / "run")
