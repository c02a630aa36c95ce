"""A start that failed can be repeated; a run is never overwritten; one process per folder."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import rl_rig
import training_rig as rig

from crane_x7_vla_rl.training import cli
from crane_x7_vla_rl.training.checkpoints import run_folder
from crane_x7_vla_rl.training.checkpoints import save as checkpoint
from crane_x7_vla_rl.training.errors import ExitCode, OutputError

ARTICLE = "a run never overwrites another: resume it with --resume auto"
WHOLE = "training: {}\nlora: {}\noutput: {}\nlogging: {}\npublish: {}\n"


def save(run: Path, step: int) -> Path:
    return checkpoint.save(
        run, checkpoint.named(step), step, lambda to: (to / "weights").write_text("…")
    )


def claim(run: Path, resuming: bool = False) -> None:
    run_folder.check(run, resuming)
    with run_folder.claimed(run, resuming):
        pass


def test_a_folder_with_a_complete_checkpoint_is_resumed_or_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    claim(run)
    save(run, 5)
    with pytest.raises(OutputError, match=f"newest checkpoint is checkpoint-5; {ARTICLE}"):
        run_folder.check(run, resuming=False)
    with pytest.raises(OutputError, match=ARTICLE), run_folder.claimed(run, resuming=False):
        pass
    claim(run, resuming=True)


def test_what_an_interrupted_start_left_is_taken_over(tmp_path: Path) -> None:
    """As older versions left it as well: nothing but a configuration and event files."""
    run = tmp_path / "run"
    for folder in ("tensorboard", ".tmp-checkpoint-3", ".trash-checkpoint-1", "wandb"):
        (run / folder).mkdir(parents=True)
        (run / folder / "file").write_text("…")
    (run / checkpoint.CONFIG).write_text(WHOLE)
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    (run / "notes.txt").write_text("mine")
    claim(run)
    assert {path.name for path in run.iterdir()} == {
        checkpoint.CONFIG, run_folder.LOG, "notes.txt", "wandb"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["metrics.jsonl", "train_config.yaml", "base", "checkpoint-7"])
def test_files_of_others_are_never_overwritten(name: str, tmp_path: Path) -> None:
    theirs = tmp_path / "run" / name
    theirs.parent.mkdir()
    if "." in name:
        theirs.write_text("output: {dir: mine}\n")
    else:
        theirs.mkdir()
        (theirs / "weights").write_text("mine")
    with pytest.raises(OutputError, match=f"holds {name}"):
        run_folder.check(tmp_path / "run", resuming=False)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for run in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OutputError, match="cannot be used for output"):
            run_folder.check(run, resuming=False)
    run_folder.check(tmp_path / "new" / "run", resuming=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_two_processes_never_train_in_one_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with run_folder.claimed(run, resuming=False):
        for resuming in (False, True):
            with pytest.raises(OutputError, match="another process trains in this folder"):
                run_folder.check(run, resuming)
        with pytest.raises(OutputError, match="another process"), run_folder.locked(run):
            pass
    run_folder.check(run, resuming=False)


def test_a_checkpoint_that_a_kill_left_beside_its_place_counts(tmp_path: Path) -> None:
    save(tmp_path, 3).rename(tmp_path / ".tmp-checkpoint-3")
    assert run_folder.newest(tmp_path) == tmp_path / "checkpoint-3"


def test_the_list_of_what_a_run_writes_is_complete() -> None:
    """Else a start would leave behind what an interrupted one wrote."""
    known = {checkpoint.CONFIG, run_folder.LOG, run_folder.BASE, *run_folder.FIGURES}
    found = {path.name for path in rl_rig.whole().iterdir()}
    assert {name for name in found if not name.startswith(checkpoint.PREFIXES)} <= known


# --- the commands ---------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["sft", "train"])
def test_a_start_without_its_model_writes_nothing_and_can_be_repeated(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, gone = tmp_path / "run", str(tmp_path / "gone")
    argv = {
        "sft": rig.flags(run, "--model", gone),
        "train": rl_rig.flags(run, "--sft-checkpoint", gone),
    }[command]
    for _ in range(2):
        assert cli.main([command, *argv]) == ExitCode.POLICY_LOAD, capsys.readouterr().err
        assert not run.exists()


def test_after_a_kill_before_the_first_checkpoint_the_same_command_starts_anew(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    argv = rig.flags(run, "--max-steps", "3")
    process = rig.start(rig.flags(run, "--max-steps", "99999", "--save-steps", "99999"))
    end_s = time.monotonic() + rig.PATIENCE_S
    while not (run / "metrics.jsonl").exists() or not rig.losses(run):
        assert process.poll() is None
        assert time.monotonic() < end_s
        time.sleep(0.02)
    with pytest.raises(OutputError, match="another process trains in this folder"):
        rig.again(*argv)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    rig.again(*argv)
    assert [figures["step"] for figures in rig.metrics(run)] == [1, 2, 3]


def test_resume_auto_starts_where_nothing_is_and_resumes_where_something_is(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    whole = tmp_path / "whole"
    rig.train(whole, "--resume", "auto", "--max-steps", "4")
    rig.train(run, "--resume", "auto", "--max-steps", "4", "--stop-after", "2")
    rig.train(run, "--resume", "auto", "--max-steps", "4")
    assert rig.losses(run) == rig.losses(whole)
    with pytest.raises(OutputError, match=ARTICLE):
        rig.train(run, "--max-steps", "4")
