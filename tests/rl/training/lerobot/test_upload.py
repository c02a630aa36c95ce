"""Checkpoints on a stand-in for the Hub: the marker is last; half an upload is never used."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lerobot_saves
import pytest
from fake_hub_upload import Taker, UploadHub

pytest.importorskip("huggingface_hub", reason="needs the train extra")

from crane_x7_vla_rl.training.checkpoints.publish import UploadError
from crane_x7_vla_rl.training.errors import ConfigError
from crane_x7_vla_rl.training.lerobot import run, saved, upload
from crane_x7_vla_rl.training.lerobot.run import Call
from crane_x7_vla_rl.training.lerobot.upload import Both, Destination, HubCheckpoints

REPO = "me/ckpt"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    with UploadHub() as served:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", served.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", served.url, raising=False)
        yield served


def target(hub: UploadHub, repo: str = REPO, policy: bool = False) -> HubCheckpoints:
    from huggingface_hub import HfApi

    made = HubCheckpoints(repo, policy)
    made._api = HfApi(endpoint=hub.url, token="hf_test")
    return made


def test_a_checkpoint_is_a_folder_of_the_repository_and_its_marker_comes_last(
    hub: UploadHub, tmp_path: Path
) -> None:
    folder = lerobot_saves.save(tmp_path, 2)
    target(hub).upload(folder)
    target(hub).upload(lerobot_saves.save(tmp_path, 4))
    assert hub.private
    (_, first), (_, second) = hub.commits[:2]
    assert "checkpoints/000002/complete.json" not in first
    assert "checkpoints/000002/complete.json" in second
    assert upload.newest_on_hub(first) is None
    assert upload.newest_on_hub(second) == "checkpoints/000002"
    assert upload.newest_on_hub(hub.files) == "checkpoints/000004"
    model = "checkpoints/000002/pretrained_model/model.safetensors"
    assert hub.files[model] == (folder / "pretrained_model/model.safetensors").read_bytes()
    sizes = json.loads(hub.files["checkpoints/000002/complete.json"])["files"]
    assert sizes["training_state/training_step.json"] > 0


def test_an_upload_that_breaks_off_leaves_the_checkpoint_before_as_the_newest(
    hub: UploadHub, tmp_path: Path
) -> None:
    target(hub).upload(lerobot_saves.save(tmp_path, 2))
    count = len(hub.commits)

    def second_commit(request: Taker) -> bool:
        if "/commit/" in request.path and len(hub.commits) > count:
            request.say({"error": "gone"}, 503)
            return True
        return False

    hub.fault = second_commit
    folder = lerobot_saves.save(tmp_path, 4)
    with pytest.raises(UploadError):
        target(hub).upload(folder)
    assert "checkpoints/000004/pretrained_model/model.safetensors" in hub.files
    assert upload.newest_on_hub(hub.files) == "checkpoints/000002"
    hub.fault = None
    target(hub).upload(folder)
    assert upload.newest_on_hub(hub.files) == "checkpoints/000004"


def test_an_incomplete_checkpoint_is_not_uploaded(hub: UploadHub, tmp_path: Path) -> None:
    folder = lerobot_saves.save(tmp_path, 2)
    (folder / "training_state/rng_state.safetensors").unlink()
    with pytest.raises(UploadError, match="rng_state"):
        target(hub).upload(folder)
    assert not hub.commits


def test_the_finished_policy_alone_is_the_root_of_its_own_repository(
    hub: UploadHub, tmp_path: Path
) -> None:
    target(hub, policy=True).upload(lerobot_saves.save(tmp_path, 2))
    assert "config.json" in hub.files
    assert not any("training_state" in name for name in hub.files)


def test_a_repository_with_another_run_is_refused(hub: UploadHub, tmp_path: Path) -> None:
    target(hub).upload(lerobot_saves.save(tmp_path, 2))
    with pytest.raises(ConfigError, match="--resume auto"):
        target(hub).refuse_other_run()


def _call(folder: Path) -> Call:
    words = [f"--output_dir={folder}", "--steps=6", "--save_freq=2", "--step_s=0.6"]
    command = [sys.executable, lerobot_saves.__file__, *words]
    return Call(command, dict(os.environ), folder, 6, 1)


def test_each_save_is_uploaded_while_the_training_goes_on(hub: UploadHub, tmp_path: Path) -> None:
    run.train(_call(tmp_path / "run"), Destination(target(hub), every_save=True))
    assert upload.newest_on_hub(hub.files) == "checkpoints/000006"
    assert len(hub.commits) >= 4  # more than the last one


def test_a_hub_that_cannot_be_reached_stops_no_training_and_the_rest_is_named(
    hub: UploadHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "UPLOAD_S", 4.0)

    def down(request: Taker) -> bool:
        request.say({"error": "down"}, 503)
        return True

    hub.fault = down
    found = run.train(_call(tmp_path / "run"), Destination(target(hub), every_save=True))
    assert found is not None
    assert found.step == 6
    assert "000006" in (tmp_path / "run/not-uploaded.txt").read_text()


def test_both_repositories_get_what_is_theirs(tmp_path: Path) -> None:
    got: list[tuple[str, str]] = []

    class To:
        def __init__(self, name: str) -> None:
            self.name = name

        def __str__(self) -> str:
            return self.name

        def upload(self, folder: Path) -> None:
            got.append((self.name, folder.name))

    Both((To("a"), To("b"))).upload(tmp_path / "000002")
    assert got == [("a", "000002"), ("b", "000002")]


def test_what_the_hub_holds_is_fetched_and_checked_before_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    source = tmp_path / "source"
    for step in (2, 4):
        saved_marker(lerobot_saves.save(source, step))
    (source / "checkpoints/000004/complete.json").unlink()
    names = [str(p.relative_to(source)) for p in source.rglob("*") if p.is_file()]

    class Api:
        def model_info(self, name: str) -> Any:
            assert name == REPO
            return type("Info", (), {
                "sha": "0" * 40,
                "siblings": [type("File", (), {"rfilename": each}) for each in names],
            })  # fmt: skip

    def fetch(name: str, *, revision: str, allow_patterns: str, local_dir: Path) -> str:
        del name, revision
        import shutil

        place = allow_patterns.removesuffix("/*")
        shutil.copytree(source / place, local_dir / place)
        return str(local_dir)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    found = upload.download(REPO, tmp_path / "run")
    assert found is not None
    assert found.step == 2
    assert saved.newest(tmp_path / "run") == found
    assert upload.download(REPO, tmp_path / "run", above=2) is None


def saved_marker(folder: Path) -> None:
    from crane_x7_vla_rl.training.lerobot import save_whole

    save_whole.finish(folder)


def test_a_kill_during_an_upload_is_made_good_by_the_next_resume(
    hub: UploadHub, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    code = (
        "import sys; from pathlib import Path\n"
        "from huggingface_hub import HfApi\n"
        "from crane_x7_vla_rl.training.lerobot.upload import HubCheckpoints\n"
        "t = HubCheckpoints('me/ckpt'); t._api = HfApi(endpoint=sys.argv[1], token='hf_test')\n"
        "t.upload(Path(sys.argv[2]))\n"
    )

    def slow(request: Taker) -> bool:
        if "/commit/" in request.path:
            time.sleep(30)
        return False

    hub.fault = slow
    saved_folder = lerobot_saves.save(folder, 2)
    root = str(Path(__file__).parents[4])
    with subprocess.Popen(
        [sys.executable, "-c", code, hub.url, str(saved_folder)],
        env={**os.environ, "PYTHONPATH": root, "HF_HUB_DISABLE_XET": "1"},
    ) as uploader:
        end_s = time.monotonic() + 60
        while not any("/commit/" in each for each in hub.requests) and time.monotonic() < end_s:
            time.sleep(0.1)
        uploader.kill()
    with contextlib.suppress(IndexError):
        assert upload.newest_on_hub(hub.files) is None
    hub.fault = None
    resumed = saved.newest(folder)
    assert resumed is not None
    again = Call(
        [sys.executable, lerobot_saves.__file__, f"--output_dir={folder}", "--steps=2",
         "--save_freq=2", "--resume=true", f"--config_path={resumed.model}"],
        dict(os.environ), folder, 2, 1, resumed,
    )  # fmt: skip
    run.train(again, Destination(target(hub), every_save=True))
    assert upload.newest_on_hub(hub.files) == "checkpoints/000002"
