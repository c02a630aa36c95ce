"""Uploads run in the background of training, are retried, and are named if they failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import training_rig as rig
from fake_hub import FakeHub
from fake_hub_upload import Taker, UploadHub
from huggingface_hub import constants
from places import RIGS
from warm_process import WarmProcess

from crane_x7_vla_rl.training import cli
from crane_x7_vla_rl.training.checkpoints import save as checkpoint
from crane_x7_vla_rl.training.checkpoints.publish import (
    LAST_TRIES,
    WAITING,
    UploadError,
    Uploads,
    UploadWorker,
)
from crane_x7_vla_rl.training.errors import ExitCode

NAME = "acme/tiny"
pytestmark = pytest.mark.timeout(rig.PATIENCE_S + 100)
PATIENCE_S = 60.0
HUB = ("--push-to-hub", "every-save", "--hub-model-id", NAME)


class Shelf:
    """A target that can be shut."""

    def __init__(self, shut: bool = False) -> None:
        self.shut = shut
        self.there: list[str] = []
        self.tries = 0
        self.door = threading.Event()
        self.door.set()

    def __str__(self) -> str:
        return "the shelf"

    def upload(self, folder: Path) -> None:
        self.tries += 1
        assert self.door.wait(PATIENCE_S)
        if self.shut:
            raise UploadError("the shelf is shut")
        self.there.append(folder.name)


def until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    shelf = Shelf()
    yield shelf
    shelf.door.set()


def test_checkpoints_arrive_in_their_order(shelf: Shelf) -> None:
    uploads = Uploads([shelf])
    for step in (1, 2):
        uploads.offer(Path(f"checkpoint-{step}"), [shelf])
    assert uploads.finish(PATIENCE_S) == []
    assert shelf.there == ["checkpoint-1", "checkpoint-2"]
    assert uploads.pending() == set()


def test_what_failed_is_tried_again_until_it_works(shelf: Shelf) -> None:
    shelf.shut = True
    worker = UploadWorker(shelf, time.monotonic, first_pause_s=0.01)
    worker.offer(Path("checkpoint-1"))
    until(lambda: shelf.tries >= 3)
    assert worker.pending() == [Path("checkpoint-1")]
    shelf.shut = False
    until(lambda: shelf.there == ["checkpoint-1"])
    until(lambda: worker.pending() == [])


def test_what_never_worked_is_listed_with_its_reason(shelf: Shelf) -> None:
    shelf.shut = True
    uploads = Uploads([shelf])
    uploads.offer(Path("checkpoint-1"), [shelf])
    until(lambda: shelf.tries >= 1)
    assert uploads.finish(PATIENCE_S) == ["checkpoint-1 → the shelf: the shelf is shut"]
    assert shelf.tries >= 1 + LAST_TRIES, "it was not tried again at the end"


def test_the_end_waits_no_longer_than_its_deadline(shelf: Shelf) -> None:
    shelf.door.clear()
    uploads = Uploads([shelf])
    uploads.offer(Path("checkpoint-1"), [shelf])
    assert uploads.finish(0.05) == ["checkpoint-1 → the shelf: timeout"]


def test_one_place_that_is_shut_keeps_no_other_waiting(shelf: Shelf) -> None:
    other = Shelf(shut=True)
    uploads = Uploads([other, shelf])
    uploads.offer(Path("checkpoint-1"), [other, shelf])
    until(lambda: shelf.there == ["checkpoint-1"])
    assert uploads.pending() == {Path("checkpoint-1")}


def test_a_place_that_stays_shut_does_not_fill_the_disk(shelf: Shelf) -> None:
    shelf.door.clear()
    worker = UploadWorker(shelf, time.monotonic)
    worker.offer(Path("checkpoint-0"))
    until(lambda: shelf.tries == 1)
    for step in range(1, 10):
        worker.offer(Path(f"checkpoint-{step}"))
    assert worker.pending() == [Path(f"checkpoint-{step}") for step in (0, 8, 9)]
    assert len(worker.pending()) == WAITING + 1
    shelf.door.set()
    worker.begin_last_tries()
    undone = worker.finish(time.monotonic() + PATIENCE_S)
    assert shelf.there == ["checkpoint-0", "checkpoint-8", "checkpoint-9"]
    assert undone == [f"checkpoint-{s} → the shelf: discarded for newer" for s in range(1, 8)]


def hub_env(hub: UploadHub | str, folder: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub if isinstance(hub, str) else hub.url,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_mine",
    }


def finish(process: subprocess.Popen[str] | WarmProcess, code: int = 0) -> str:
    said, _ = process.communicate(timeout=rig.PATIENCE_S)
    assert process.returncode == code, said
    return said


def test_every_save_is_on_the_hub_whole_and_by_its_name_though_it_broke_in_the_middle(
    tmp_path: Path,
) -> None:
    broken = 0

    def fault(request: Taker) -> bool:
        nonlocal broken
        if "/commit/" in request.path and broken < 2:
            broken += 1
            request.say({"error": "overloaded"}, 503)
            return True
        return False

    run = tmp_path / "run"
    with UploadHub(token="hf_mine", fault=fault) as hub:
        finish(rig.start_anew(rig.flags(run, "--no-use-lora", *HUB), hub_env(hub, tmp_path)))
    assert broken == 2
    assert hub.private
    assert set(hub.tags) == {"checkpoint-3", "checkpoint-6", "checkpoint-final"}
    for name in hub.tags:
        there, here = hub.tagged(name), run / name
        files = {p.relative_to(here).as_posix() for p in here.rglob("*") if p.is_file()}
        assert set(there) == files
        assert all(there[file] == (here / file).read_bytes() for file in files)
    for message, files in hub.commits:  # whoever sees the marker sees all that it lists
        if "files" in message:
            assert checkpoint.MARKER not in files
        else:
            listed = json.loads(files[checkpoint.MARKER])["files"]
            assert {n: len(files[n]) for n in listed} == listed
    assert hub.files[checkpoint.MARKER] == (run / "last" / checkpoint.MARKER).read_bytes()
    assert not (run / "not-uploaded.txt").exists()


def test_what_was_uploaded_loads_by_its_hub_id(tmp_path: Path) -> None:
    flags = rig.flags(
        tmp_path / "run", "--no-use-lora", "--push-to-hub", "--hub-model-id", NAME
    )  # fmt: skip
    with UploadHub() as hub:
        finish(rig.start_anew(flags, hub_env(hub, tmp_path)))
    assert list(hub.tags) == ["checkpoint-final"]
    code = (
        "from crane_x7_vla_rl.policies.base import ModelOptions\n"
        "from crane_x7_vla_rl.policies.load import load_policy\n"
        f"load_policy('openvla', ModelOptions(path='{NAME}'))"
    )
    with FakeHub(files=hub.files) as giving:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True,
            timeout=rig.PATIENCE_S, cwd=rig.ROOT,
            env=os.environ | hub_env(giving.url, tmp_path),
        )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_an_unreachable_hub_does_not_stop_training_and_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    rig.train(run, *HUB)
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "uploads will be retried" in said
    assert f"an adapter whose base is the folder {rig.base()}" in said
    listed = (run / "not-uploaded.txt").read_text()
    for name in ("checkpoint-3", "checkpoint-6", "checkpoint-final"):
        assert f"{run / name} → Hub {NAME}" in listed
    assert listed.strip() in said
    assert len(rig.losses(run)) == 8


def test_a_token_that_may_not_write_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with UploadHub(token="hf_other") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_mine")
        assert cli.main(["sft", *rig.flags(run, *HUB)]) == ExitCode.CONFIG
    said = capsys.readouterr().err
    assert not list(run.glob("checkpoint*"))
    assert f"publish.hub_model_id is {NAME}: the Hub answered 401; set HF_TOKEN" in said


def wandb_env(folder: Path, **more: str) -> dict[str, str]:
    """Keep W&B inside the folder."""
    names = ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR")
    return {name: str(folder / "wandb") for name in names} | {"WANDB_API_KEY": "a" * 40} | more


WANDB = ("--use-wandb", "--wandb-project", "arms", "--wandb-artifacts", "end")


def test_wandb_offline_keeps_the_run_and_its_id(tmp_path: Path) -> None:
    run = tmp_path / "run"
    env = wandb_env(tmp_path, WANDB_MODE="offline")
    finish(rig.start(rig.flags(run, *WANDB, "--max-steps", "3"), env=env))
    finish(rig.start(["--resume-from-checkpoint", str(run), "--max-steps", "5"], env=env))
    folders = sorted(path.name for path in (run / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    ids = {name.rpartition("-")[2] for name in folders}
    assert len(ids) == 1, "the resumed run is another one at W&B"
    state = json.loads((run / "last" / "training_state" / "trainer.json").read_text())
    assert {state["wandb_run"]} == ids
    assert "wandb sync" in (run / "not-uploaded.txt").read_text()


@pytest.mark.parametrize(
    "written",
    [
        pytest.param("{}\n", marks=pytest.mark.slow), " {}\r\n",
        pytest.param('"{}"', marks=pytest.mark.slow), "\ufeff{}",
    ],
)  # fmt: skip
def test_a_wandb_key_with_more_at_its_ends_is_stripped_and_never_shown(
    tmp_path: Path, written: str
) -> None:
    run, key = tmp_path / "run", "0123456789" * 4
    env = wandb_env(tmp_path, WANDB_MODE="offline", WANDB_API_KEY=written.format(key))
    said = finish(rig.start(rig.flags(run, *WANDB, "--max-steps", "1"), env=env))
    assert "Traceback" not in said
    assert key not in said
    assert list((run / "wandb").glob("offline-run-*"))


def test_what_wandb_does_not_take_from_the_environment_is_an_error_of_one_line(
    tmp_path: Path,
) -> None:
    env = wandb_env(tmp_path, WANDB_MODE="nonsense")
    flags = rig.flags(tmp_path / "run", *WANDB, "--max-steps", "1")
    said = finish(rig.start(flags, env=env), ExitCode.CONFIG)
    assert "W&B rejects its environment variables" in said
    assert "Traceback" not in said


def test_an_unreachable_wandb_does_not_stop_training_and_is_listed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    env = wandb_env(tmp_path, WANDB_MODE="online", WANDB_BASE_URL="http://127.0.0.1:9")
    said = finish(rig.start(rig.flags(run, *WANDB, "--max-steps", "3"), env=env))
    assert "W&B is not available, its run stays on disk: http://127.0.0.1:9 does not answer" in said
    assert len(rig.losses(run)) == 3
    listed = (run / "not-uploaded.txt").read_text()
    assert "wandb sync" in listed
    assert list((run / "wandb").glob("offline-run-*"))


def test_a_wandb_in_trouble_does_not_stop_training(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with UploadHub(fault=lambda request: request.say({}, 503) or True) as server:
        env = wandb_env(tmp_path, WANDB_MODE="online", WANDB_BASE_URL=server.url)
        said = finish(rig.start(rig.flags(run, "--use-wandb", "--max-steps", "3"), env=env))
    assert f"its run stays on disk: {server.url} answers 503" in said
    assert len(rig.losses(run)) == 3


def test_tensorboard_holds_every_update(tmp_path: Path) -> None:
    run = tmp_path / "run"
    code = (
        "import sys; import training_rig as rig; from pathlib import Path\n"
        "rig.train(Path(sys.argv[1]), '--tensorboard')\n"
        "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
        "events = EventAccumulator(sys.argv[1] + '/tensorboard').Reload()\n"
        "print([event.value for event in events.Scalars('train/loss')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)], capture_output=True, text=True,
        timeout=rig.PATIENCE_S,
        cwd=rig.ROOT,
        env=os.environ | {"PYTHONPATH": str(RIGS)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    drawn = json.loads(done.stdout.splitlines()[-1])
    assert drawn == pytest.approx(rig.losses(run))
