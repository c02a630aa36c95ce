"""`--push`: what it refuses, and a whole data set on a stand-in for the Hub, interrupted or not.

Uploads run in their own processes, because huggingface_hub reads its environment once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from places import ROOT

pytest.importorskip("huggingface_hub", reason="needs the train extra")

from data_rig import FPS, SIZE, seen_twice
from fake_hub import FakeHub
from fake_hub_upload import Taker, UploadHub

from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.data.lerobot import Extras, LeRobotWriter, push

REPO = "acme/tiny"
CODE = """
import logging, sys
from pathlib import Path
from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.data.lerobot.push import check, push
logging.basicConfig(level="WARNING")
try:
    check(sys.argv[2])
    print(push(Path(sys.argv[1]), sys.argv[2]))
except DataError as error:
    sys.exit(f"DataError: {error}")
"""
READ = """
import sys
from crane_x7_vla_rl.data.source import open_source
source = open_source(sys.argv[1], all_cameras=True)
for episode in source:
    print(len(episode), sorted(episode.others), episode.seen_by("wrist").image(2).shape,
          int(episode.intervention.sum()))
"""


@pytest.mark.parametrize("name", ["data", "a/b/c", "", "own er/data"])
def test_a_name_that_is_no_repository_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="is no repository, expected owner/name"):
        push.check(name)


def test_without_a_token_it_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(DataError, match="owner/data: no token; set HF_TOKEN"):
        push.check("owner/data")


def test_a_folder_without_a_data_set_is_not_sent(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no data set"):
        push.push(tmp_path, "owner/data")


# --- a whole data set ----------------------------------------------------------------------------


def written(folder: Path, episodes: int = 2, resume: bool = False) -> Path:
    extras = Extras({"wrist": (24, 16)}, intervention=True)
    with LeRobotWriter(folder, FPS, SIZE, resume=resume, extras=extras) as writer:
        for number in range(len(writer), episodes):
            writer.add(seen_twice(number))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def environment(url: str, home: Path, token: str = "hf_mine") -> dict[str, str]:
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("HF_", "HUGGING")) and not key.lower().endswith("_proxy")
    }
    hub = {"HF_ENDPOINT": url, "HF_HOME": str(home / "hf"), "HF_TOKEN": token}
    return kept | hub | {"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}


def start(folder: Path, hub: UploadHub) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CODE, str(folder), REPO],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(hub.url, folder.parent),
    )  # fmt: skip


def pushed(folder: Path, hub: UploadHub) -> tuple[int, str, str]:
    process = start(folder, hub)
    out, errors = process.communicate(timeout=120)
    return process.returncode, out, errors


def test_a_data_set_is_uploaded_whole_private_and_tagged(tmp_path: Path) -> None:
    folder = written(tmp_path / "data")
    with UploadHub(token="hf_mine") as hub:
        code, out, errors = pushed(folder, hub)
    assert code == 0, errors
    assert out == f"{folder} is on the Hub: {REPO}, private\n"
    assert (hub.kind, hub.private) == ("datasets", True)
    assert {name for name in hub.files if name.startswith(("data/", "meta/", "videos/"))} == {
        "data/chunk-000/file-000.parquet",
        "meta/episodes/chunk-000/file-000.parquet", "meta/info.json", "meta/stats.json",
        "meta/tasks.parquet",
        "videos/observation.images.base/chunk-000/file-000.mp4",
        "videos/observation.images.wrist/chunk-000/file-000.mp4",
    }  # fmt: skip
    assert hub.files == content(folder)
    assert hub.tagged("v3.0") == hub.files
    assert len(hub.commits) == 1, "nobody ever sees half of it"


@pytest.mark.slow  # by default, test_lerobot_hub reads a data set from the Hub
def test_what_was_uploaded_is_read_from_the_hub(tmp_path: Path) -> None:
    folder = written(tmp_path / "data")
    with UploadHub(token="hf_mine") as hub:
        assert pushed(folder, hub)[0] == 0
    with FakeHub(dict(hub.files)) as served:
        done = subprocess.run(
            [sys.executable, "-c", READ, REPO], capture_output=True, text=True, timeout=120,
            env=environment(served.url, tmp_path / "other"),
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["6 ['wrist'] (16, 24, 3) 3"] * 2


def test_more_episodes_replace_the_earlier_ones_and_move_the_tag(tmp_path: Path) -> None:
    folder = written(tmp_path / "data")
    with UploadHub(token="hf_mine") as hub:
        assert pushed(folder, hub)[0] == 0
        blobs = len(hub.blobs)
        written(folder, 3, resume=True)
        assert pushed(folder, hub)[0] == 0
        assert hub.files == hub.tagged("v3.0") == content(folder)
        assert len(hub.commits) == 2
        sent = len(hub.blobs)
        assert pushed(folder, hub)[0] == 0  # nothing new: no commit, and the tag is set again
        assert (len(hub.commits), len(hub.blobs)) == (2, sent)
        assert hub.tagged("v3.0") == content(folder)
    assert sent >= blobs


def test_an_upload_that_is_killed_leaves_the_one_before_and_is_repeated(tmp_path: Path) -> None:
    folder = written(tmp_path / "data")
    reached, go_on = threading.Event(), threading.Event()

    def hold(request: Taker) -> bool:
        """Let the second commit wait until its sender is dead."""
        if "/commit/" in request.path and len(hub.commits) == 1 and not go_on.is_set():
            reached.set()
            go_on.wait(60)
            request.close_connection = True
            return True
        return False

    with UploadHub(token="hf_mine", fault=hold) as hub:
        assert pushed(folder, hub)[0] == 0
        before = dict(hub.files)
        written(folder, 3, resume=True)
        process = start(folder, hub)
        assert reached.wait(60)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        go_on.set()
        assert hub.files == hub.tagged("v3.0") == before
        assert pushed(folder, hub)[0] == 0
        assert hub.files == hub.tagged("v3.0") == content(folder)


def test_an_upload_that_ends_before_the_tag_is_completed_by_the_next(tmp_path: Path) -> None:
    folder = written(tmp_path / "data")

    def refuse(request: Taker) -> bool:
        if "/tag/" in request.path and request.command == "POST" and refuses.is_set():
            request.say({"error": "broken"}, 500)
            return True
        return False

    refuses = threading.Event()
    refuses.set()
    with UploadHub(token="hf_mine", fault=refuse) as hub:
        code, _, errors = pushed(folder, hub)
        assert code == 1
        assert "the Hub answered 500" in errors
        assert f"crane-x7-remote record {folder} --upload-only --push {REPO}" in errors
        refuses.clear()
        assert pushed(folder, hub)[0] == 0
        assert hub.tagged("v3.0") == content(folder)
        assert len(hub.commits) == 1


def test_a_repository_that_is_public_already_is_said(tmp_path: Path) -> None:
    folder = written(tmp_path / "data")
    with UploadHub(token="hf_mine") as hub:
        hub.repository, hub.private, hub.kind = REPO, False, "datasets"
        code, out, errors = pushed(folder, hub)
    assert code == 0, errors
    assert f"{REPO} is public: everyone will see the episodes' images" in errors
    assert out.endswith(", public\n")


def test_a_token_that_is_not_accepted_is_one_line_without_it(tmp_path: Path) -> None:
    folder = written(tmp_path / "data")
    with UploadHub(token="hf_other") as hub:
        code, _, errors = pushed(folder, hub)
    assert code == 1
    assert "the Hub answered 401" in errors
    assert "HF_TOKEN has write access" in errors
    assert "hf_mine" not in errors
    assert "Traceback" not in errors
