"""A training runs as a child: its lines, its end, its signals. The trainer is a stand-in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import lerobot_saves
import pytest

from crane_x7_vla_rl.policies.base import PolicyLoadError
from crane_x7_vla_rl.training.errors import (
    NotFiniteError,
    OutOfMemoryError,
    OutputError,
    TrainingError,
)
from crane_x7_vla_rl.training.lerobot import output, run, saved
from crane_x7_vla_rl.training.lerobot.run import Call
from crane_x7_vla_rl.training.lerobot.upload import Destination

STAND_IN = lerobot_saves.__file__


def call(folder: Path, resumed: saved.Saved | None = None, **given: object) -> Call:
    words = {"output_dir": folder, "steps": 6, "save_freq": 2, **given}
    if resumed is not None:
        words |= {"resume": "true", "config_path": resumed.model}
    command = [sys.executable, str(STAND_IN), *(f"--{k}={v}" for k, v in words.items())]
    return Call(command, dict(os.environ), folder, 6, 1, resumed, shown="lerobot-train")


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_training_leaves_checkpoints_figures_and_its_whole_output(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    found = run.train(call(folder))
    assert found is not None
    assert found.step == 6
    figures = rows(folder)
    assert [row["step"] for row in figures] == [1, 2, 3, 4, 5, 6]
    assert figures[1]["loss"] == 0.5
    assert figures[1]["learning_rate"] == 5e-5
    assert "End of training" in (folder / "train.log").read_text()


def test_a_resumed_training_goes_on_from_the_newest_complete_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run.train(call(folder))
    (folder / "checkpoints/000006/training_state/rng_state.safetensors").unlink()
    newest = saved.newest(folder)
    assert newest is not None
    assert newest.step == 4
    saved.prepare(newest)
    found = run.train(call(folder, newest))
    assert found is not None
    assert found.step == 6
    assert [row["step"] for row in rows(folder)] == [1, 2, 3, 4, 5, 6]


def test_sigterm_lets_the_trainer_save_and_stop(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def stop() -> None:
        while not (folder / "metrics.jsonl").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    found = run.train(call(folder, save_freq=100, step_s=0.7))
    assert found is not None
    assert 0 < found.step < 6


def test_a_loss_that_is_not_a_number_ends_the_training_and_saves_nothing_more(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(NotFiniteError, match="000002"):
        run.train(call(folder, nan=3, step_s=0.5))
    assert not (folder / "checkpoints/000004").exists()


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", OutOfMemoryError),
        ("OSError: [Errno 28] No space left on device", OutputError),
        ("huggingface_hub.errors.GatedRepoError: 403 Client Error", PolicyLoadError),
        ("RuntimeError: Error(s) in loading state_dict for ACT: size mismatch", PolicyLoadError),
        ("RuntimeError: something new", TrainingError),
    ],
)
def test_a_failure_names_its_cause_with_the_exit_code_of_our_trainers(
    said: str, kind: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(kind) as caught:
        run.train(call(tmp_path / "run", fail=said))
    assert said[:40] in str(caught.value)
    assert type(caught.value) is kind


def test_a_trainer_that_the_system_killed_is_named_as_out_of_memory() -> None:
    assert isinstance(output.failure(-9, ["INFO …"]), OutOfMemoryError)


def test_a_new_run_never_overwrites_another_and_reuses_what_a_start_left(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "train.log").write_text("")
    (folder / "checkpoints" / ".saving-000002").mkdir(parents=True)
    run.check_folder(folder, False)
    assert not folder.exists()
    lerobot_saves.save(folder, 2)
    with pytest.raises(OutputError, match="--resume auto"):
        run.check_folder(folder, False)
    run.check_folder(folder, True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        run.check_folder(tmp_path / "mine", False)


def test_the_trainer_dies_with_its_supervisor(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code = (
        "import sys, threading; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from crane_x7_vla_rl.training.lerobot.trainer import Trainer; import os\n"
        "with Trainer([sys.executable, sys.argv[1], '--output_dir=' + sys.argv[3], '--steps=900',"
        " '--save_freq=900', '--step_s=1'], os.environ) as t:\n"
        "    print(t.pid, flush=True)\n    [None for _ in t.lines()]\n"
    )
    words = [sys.executable, "-c", code, str(STAND_IN), str(Path(__file__).parents[4]), str(folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        trainer = int(supervisor.stdout.readline())
        supervisor.kill()
    deadline_s = time.monotonic() + 20
    while Path(f"/proc/{trainer}").exists() and time.monotonic() < deadline_s:
        if "Z" in Path(f"/proc/{trainer}/stat").read_text().split(")")[1][:3]:
            return  # ended; nobody has collected it yet
        time.sleep(0.1)
    assert not Path(f"/proc/{trainer}").exists()


class _Target:
    def __init__(self) -> None:
        self.got: list[str] = []

    def __str__(self) -> str:
        return "a list"

    def upload(self, folder: Path) -> None:
        self.got.append(folder.name)


def test_the_last_checkpoint_is_uploaded_at_the_end(tmp_path: Path) -> None:
    target = _Target()
    run.train(call(tmp_path / "run"), Destination(target, every_save=False))
    assert target.got == ["000006"]
