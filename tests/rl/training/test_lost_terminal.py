"""A lost ssh session saves a training and lets it continue; its log can be shown again."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import rl_rig
import training_rig as rig
from terminal_rig import Terminal
from warm_process import WarmProcess

from crane_x7_vla_rl.training import cli, follow, preflight
from crane_x7_vla_rl.training.checkpoints import run_folder
from crane_x7_vla_rl.training.checkpoints import save as checkpoint
from crane_x7_vla_rl.training.errors import ExitCode, OutputError
from crane_x7_vla_rl.training.run_log import RunLog

pytestmark = pytest.mark.timeout(2 * rig.PATIENCE_S)
RARELY = "99999"


def wait_for(process: WarmProcess, come: Callable[[], object]) -> None:
    end_s = time.monotonic() + rig.PATIENCE_S
    while not come():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end_s
        time.sleep(0.02)


def updates(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize("command", ["sft", pytest.param("train", marks=pytest.mark.slow)])
def test_a_lost_terminal_saves_and_the_training_continues(command: str, tmp_path: Path) -> None:
    run, terminal = tmp_path / "run", Terminal()
    argv = {
        "sft": rig.flags(run, "--max-steps", RARELY, "--save-steps", RARELY),
        "train": rl_rig.flags(run, "--num-updates", RARELY, "--save-every", RARELY),
    }[command]
    first = ("terminal_rig", "take", terminal.name)
    process = WarmProcess([command, *argv], rig.ON_CPU, first)
    wait_for(process, lambda: terminal.read() and updates(run) >= 1)
    terminal.lose()
    done = updates(run)
    wait_for(process, lambda: updates(run) > done)  # also while nobody has told it
    process.send_group(signal.SIGHUP)
    wait_for(process, (run / "last").exists)
    saved = checkpoint.step_of(run / "last")
    wait_for(process, lambda: updates(run) > saved)
    process.send_signal(signal.SIGTERM)
    process.communicate(rig.PATIENCE_S)
    log = (run / "train.log").read_text()
    assert process.returncode == 0, log
    assert b"\x1b[?25l" in terminal.shown, "no bar was shown"
    for text in (
        f"--follow {run}",
        "configuration:",
        "SIGHUP: saved",
        {"sft": " step:", "train": " update:"}[command],
        "stopped after",
    ):
        assert text in log, log
    assert "Traceback" not in log
    assert checkpoint.step_of(run / "last") == updates(run)


@pytest.mark.parametrize("run", [rig.train, rl_rig.train])
def test_a_session_that_is_lost_while_the_training_starts_is_ignored(
    run: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*found: object) -> None:
        del found
        os.kill(os.getpid(), signal.SIGHUP)
        raise OutputError("the start came as far as its checks")

    ended: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, _: ended.append(number))
    monkeypatch.setattr(preflight, "raise_all", lose)
    try:
        with pytest.raises(OutputError):
            run(tmp_path / "run")
        assert not ended
        os.kill(os.getpid(), signal.SIGHUP)
        assert ended, "a handler from before is back"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_records_before_the_folder_is_known_and_the_error_at_the_end_are_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with suppress(OutputError), RunLog() as log:
        logging.getLogger("early").info("configuration")
        log.open(tmp_path / "train.log")
        raise OutputError("the disk is full")
    early, end = (tmp_path / "train.log").read_text().splitlines()
    assert early.endswith(" INFO    early: configuration")
    assert " ERROR " in end
    assert end.endswith("the run ends with an error: the disk is full")


def test_follow_shows_the_last_lines_then_new_ones_until_the_run_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    codes = []
    with run_folder.locked(run):
        log = run / run_folder.LOG
        log.write_text("".join(f"line {number}\n" for number in range(100)))
        watching = threading.Thread(
            target=lambda: codes.append(cli.main(["train", "--follow", str(run)]))
        )
        watching.start()
        said = ""
        while "line 99" not in said:
            time.sleep(0.01)
            said += capsys.readouterr().out
        with log.open("a") as file:
            file.write("the newest line\n")
    watching.join(30)
    new, notes = capsys.readouterr()
    said += new
    assert codes == [0]
    assert said.startswith("line 80\n")
    assert said.endswith("the newest line\n")
    assert "no training is running in this folder" in notes


def test_follow_says_which_folder_it_wants(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sft", "--follow", str(tmp_path)]) == ExitCode.OUTPUT
    assert "holds no train.log; give the folder of a run" in capsys.readouterr().err


def test_ctrl_c_stops_following_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt(seconds)

    with run_folder.locked(tmp_path / "run"):
        monkeypatch.setattr(follow, "time", SimpleNamespace(sleep=interrupted))
        assert cli.main(["train", "--follow", str(tmp_path / "run")]) == 0
    assert "the training continues" in capsys.readouterr().err
