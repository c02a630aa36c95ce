"""A LeRobotDataset on the Hub: only what is needed is fetched, and every refusal is one line.

Each download runs in its own process, because huggingface_hub reads its environment once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

pytest.importorskip("huggingface_hub", reason="needs the train extra")
pytest.importorskip("pyarrow", reason="needs the train extra")
pytest.importorskip("av", reason="needs the train extra")

from data_rig import FPS, SIZE, episode
from fake_hub import COMMIT, REPOSITORY, Answer, FakeHub

from crane_x7_vla_rl.data.lerobot import LeRobotWriter, V21Writer

OTHER = "videos/observation.images.wrist/chunk-000/file-000.mp4"
CODE = """
import sys
from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.data.source import open_source
try:
    source = open_source(sys.argv[1])
    print(source.name, len(source), source[1].image(2).shape)
except DataError as error:
    sys.exit(f"DataError: {error}")
"""


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.glob("**/*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("dataset")
    with LeRobotWriter(folder, FPS, SIZE) as writer:
        for number in range(2):
            writer.add(episode(number))
    return {**_files(folder), OTHER: b"large", "README.md": b"hello"}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[FakeHub]:
    with FakeHub(dict(files)) as hub:
        yield hub


def _open(
    hub: FakeHub, home: Path, name: str = REPOSITORY, **env: str
) -> subprocess.CompletedProcess[str]:
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("HF_", "HUGGING")) and not key.lower().endswith("_proxy")
    }
    return subprocess.run(
        [sys.executable, "-c", CODE, name],
        capture_output=True,
        text=True,
        timeout=110,
        env=kept
        | {
            "PYTHONPATH": str(ROOT),
            "HF_HOME": str(home),
            "HF_ENDPOINT": hub.url,
            "HF_HUB_ETAG_TIMEOUT": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **env,
        },
    )


@pytest.mark.parametrize("name", [REPOSITORY, f"{REPOSITORY}@v1"])
def test_only_what_training_needs_is_fetched(
    hub: FakeHub, tmp_path: Path, files: dict[str, bytes], name: str
) -> None:
    done = _open(hub, tmp_path, name)
    assert done.stdout == f"{name} 2 (32, 48, 3)\n", done.stderr
    fetched = {line.rpartition(f"/{COMMIT}/")[2] for line in hub.requests if "resolve" in line}
    assert fetched == set(files) - {OTHER, "README.md"}


def test_a_data_set_of_v21_is_fetched_with_one_camera(tmp_path: Path) -> None:
    with V21Writer(tmp_path / "v21", FPS, SIZE) as writer:
        for number in range(2):
            writer.add(episode(number))
    files = _files(tmp_path / "v21")
    other = "videos/chunk-000/observation.images.wrist/episode_000000.mp4"
    with FakeHub({**files, other: b"large"}) as hub:
        done = _open(hub, tmp_path / "home")
        assert done.stdout == f"{REPOSITORY} 2 (32, 48, 3)\n", done.stderr
        fetched = {line.rpartition(f"/{COMMIT}/")[2] for line in hub.requests if "resolve" in line}
    assert fetched == set(files)


def test_a_silent_hub_leaves_the_cache(hub: FakeHub, tmp_path: Path) -> None:
    assert _open(hub, tmp_path).returncode == 0

    def silent(answer: Answer) -> bool:
        answer.say_nothing(3.0)
        return True

    hub.fault = silent
    done = _open(hub, tmp_path)
    assert done.stdout == f"{REPOSITORY} 2 (32, 48, 3)\n", done.stderr
    assert "using the copy in the cache" in done.stderr
    hub.requests.clear()
    assert _open(hub, tmp_path, HF_HUB_OFFLINE="1").returncode == 0
    assert hub.requests == []
    empty = _open(hub, tmp_path / "empty", HF_HUB_OFFLINE="1")
    assert empty.stderr.startswith(
        "DataError: acme/tiny: HF_HUB_OFFLINE is set, and it is not in the cache"
    )


def test_refusals_say_what_to_do(hub: FakeHub, tmp_path: Path) -> None:
    hub.token = "secret"
    assert (
        "DataError: acme/tiny: the Hub answered 401; check the name" in _open(hub, tmp_path).stderr
    )
    hub.token = None
    missing = _open(hub, tmp_path, f"{REPOSITORY}@v9")
    assert (
        "DataError: acme/tiny: the Hub answered 404; check the name and the rev" in missing.stderr
    )
    hub.files = {"config.json": b"{}"}
    other = _open(hub, tmp_path)
    assert "holds no meta/*; is it a LeRobotDataset v3? It holds config.json" in other.stderr


def test_a_download_that_breaks_off_is_continued(hub: FakeHub, tmp_path: Path) -> None:
    def refuse_video(answer: Answer) -> bool:
        if answer.command == "GET" and answer.path.endswith(".mp4"):
            answer.refuse(500)
            return True
        return False

    hub.fault = refuse_video
    broken = _open(hub, tmp_path)
    assert "DataError: acme/tiny: the download was interrupted" in broken.stderr
    hub.fault = None
    hub.requests.clear()
    assert _open(hub, tmp_path).returncode == 0
    assert not [line for line in hub.requests if line.startswith("GET") and "parquet" in line]
