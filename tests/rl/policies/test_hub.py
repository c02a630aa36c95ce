"""Models from the Hub: what is fetched, what is not, and every way in which the Hub may fail.

Each download runs in its own process, because huggingface_hub reads its environment once.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import COMMIT, REPOSITORY, Answer, FakeHub
from places import FIXTURES

pytest.importorskip("huggingface_hub", reason="needs the train extra")

SHARD = os.urandom(24_000_000)
"""huggingface_hub writes its downloads in pieces of 10 MB."""
FILES = {
    "config.json": b'{"model_type": "openvla", "auto_map": {"AutoModel": "modeling_evil.Evil"}}',
    "model.safetensors": SHARD,
    "dataset_statistics.json": b"{}",
    "tokenizer.json": b"{}",
    "modeling_evil.py": b"raise SystemExit('code of the repository was run')",
    "pytorch_model.bin": b"a pickle",
    "README.md": b"hello",
    "checkpoint-500/model.safetensors": SHARD[:1000],
}
WANTED = {"config.json", "model.safetensors", "dataset_statistics.json", "tokenizer.json"}
CODE = """
import sys
from crane_x7_vla_rl.policies.hub import HubError, resolve
try:
    print(resolve(*sys.argv[1:]))
except HubError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub(dict(FILES)) as hub:
        yield hub


def _environ(home: Path, endpoint: str, **more: str) -> dict[str, str]:
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("HF_", "HUGGING")) and not key.lower().endswith("_proxy")
    }
    return kept | {
        "HF_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_ETAG_TIMEOUT": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TQDM_POSITION": "-1",  # bars also where standard error is no terminal
        **more,
    }


def _resolve(
    hub: FakeHub, home: Path, name: str = REPOSITORY, *, largest_file: int | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    return subprocess.run(
        [sys.executable, "-c", CODE, name],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env=_environ(home, hub.url, **env),
        preexec_fn=limit,
    )


def _folder(done: subprocess.CompletedProcess[str]) -> Path:
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def _error(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()[-1]


def _is_shard(answer: Answer) -> bool:
    return answer.command == "GET" and answer.path.endswith("model.safetensors")


def test_weights_and_json_are_fetched_and_code_pickles_and_run_folders_are_not(
    hub: FakeHub, tmp_path: Path
) -> None:
    done = _resolve(hub, tmp_path)
    folder = _folder(done)
    assert {path.name for path in folder.iterdir()} == WANTED
    assert (folder / "model.safetensors").read_bytes() == SHARD
    assert not [line for line in hub.requests if ".py" in line or ".bin" in line]
    assert not list(tmp_path.rglob("*.py"))
    assert "model.safetensors: 100%" in done.stderr, "a progress bar is shown"


def test_the_folder_of_smolvlas_model_is_fetched_and_no_code_in_it(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.files |= {"vlm/config.json": b"{}", "vlm/tokenizer.json": b"{}", "vlm/evil.py": b"raise"}
    folder = _folder(_resolve(hub, tmp_path))
    assert {path.name for path in (folder / "vlm").iterdir()} == {"config.json", "tokenizer.json"}


def test_a_second_start_fetches_nothing_and_an_unreachable_hub_is_no_obstacle(
    hub: FakeHub, tmp_path: Path
) -> None:
    folder = _folder(_resolve(hub, tmp_path))
    sent = hub.sent_bytes
    assert _folder(_resolve(hub, tmp_path)) == folder
    assert hub.sent_bytes == sent
    asked = len(hub.requests)
    assert _folder(_resolve(hub, tmp_path, HF_HUB_OFFLINE="1")) == folder
    assert len(hub.requests) == asked
    hub.fault = lambda answer: answer.refuse(503) is None
    done = _resolve(hub, tmp_path)
    assert _folder(done) == folder
    assert "using the copy in the cache" in done.stderr


def test_offline_without_a_cached_copy_is_an_error(hub: FakeHub, tmp_path: Path) -> None:
    message = _error(_resolve(hub, tmp_path, HF_HUB_OFFLINE="1"))
    assert "HF_HUB_OFFLINE is set" in message
    assert f"{REPOSITORY}@main" in message
    assert hub.requests == []


@pytest.mark.parametrize("revision", ["v1", COMMIT])
def test_a_revision_after_the_name_pins_it(hub: FakeHub, tmp_path: Path, revision: str) -> None:
    folder = _folder(_resolve(hub, tmp_path, f"{REPOSITORY}@{revision}"))
    assert folder.name == COMMIT
    assert f"GET /api/models/{REPOSITORY}/revision/{revision}" in hub.requests
    assert (
        _folder(_resolve(hub, tmp_path, f"{REPOSITORY}@{revision}", HF_HUB_OFFLINE="1")) == folder
    )


def test_an_unknown_revision_is_named(hub: FakeHub, tmp_path: Path) -> None:
    message = _error(_resolve(hub, tmp_path, f"{REPOSITORY}@v2"))
    assert message == (
        f"HubError: {REPOSITORY} on the Hub has no revision 'v2'; give a branch, a tag or a full"
        " commit hash"
    )


def test_the_token_goes_to_the_hub_and_is_never_shown(hub: FakeHub, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    refused = _resolve(hub, tmp_path)
    assert "answered 401" in _error(refused)
    assert "HF_TOKEN" in _error(refused)
    wrong = _resolve(hub, tmp_path, HF_TOKEN="hf_wrong")
    assert "answered 401" in _error(wrong)
    assert "hf_wrong" not in wrong.stderr
    done = _resolve(hub, tmp_path, HF_TOKEN="hf_secret")
    assert (_folder(done) / "model.safetensors").read_bytes() == SHARD
    assert "hf_secret" not in done.stderr


def test_404_asks_to_check_the_name(hub: FakeHub, tmp_path: Path) -> None:
    message = _error(_resolve(hub, tmp_path, "acme/other", HF_TOKEN="hf_some"))
    assert "acme/other@main: the Hub answered 404: this model does not exist" in message


@pytest.mark.parametrize("status", [429, 500])
def test_a_hub_in_trouble_is_asked_again_and_then_given_up(
    hub: FakeHub, tmp_path: Path, status: int
) -> None:
    hub.fault = lambda answer: answer.refuse(status) is None
    message = _error(_resolve(hub, tmp_path))
    assert f"the Hub answered {status}" in message
    assert "acme/tiny@main is not in the cache either" in message
    assert len(hub.requests) == 3


@pytest.mark.parametrize("status", [429, 500])
def test_trouble_that_passes_is_no_failure(hub: FakeHub, tmp_path: Path, status: int) -> None:
    def once(answer: Answer) -> bool:
        if len(hub.requests) > 1:
            return False
        answer.refuse(status)
        return True

    hub.fault = once
    assert (_folder(_resolve(hub, tmp_path)) / "model.safetensors").read_bytes() == SHARD


def test_a_server_that_asks_for_an_hour_is_given_up_at_once(hub: FakeHub, tmp_path: Path) -> None:
    hub.fault = lambda answer: answer.refuse(429, Retry_After="3600") is None
    assert "too many requests" in _error(_resolve(hub, tmp_path))
    assert len(hub.requests) == 1


def test_silence_ends_at_a_deadline(hub: FakeHub, tmp_path: Path) -> None:
    hub.fault = lambda answer: answer.say_nothing() is None
    message = _error(_resolve(hub, tmp_path))
    assert "the Hub did not answer (ReadTimeout" in message


def test_nobody_at_the_address_is_an_error_that_says_so(tmp_path: Path) -> None:
    hub = FakeHub({})
    with hub:
        pass  # its port is closed now
    assert "the Hub did not answer (ConnectError" in _error(_resolve(hub, tmp_path))


def _cut_after(count: int) -> bytes:
    return SHARD[:count]


def test_a_connection_that_breaks_midway_goes_on_where_it_was(hub: FakeHub, tmp_path: Path) -> None:
    cuts: list[str] = []

    def cut(answer: Answer) -> bool:
        if not _is_shard(answer) or cuts:
            return False
        cuts.append(answer.path)
        answer.start(200, {"X-Repo-Commit": COMMIT, "Content-Length": str(len(SHARD))})
        answer.send(_cut_after(21_000_000))
        answer.close_connection = True
        return True

    hub.fault = cut
    folder = _folder(_resolve(hub, tmp_path))
    assert (folder / "model.safetensors").read_bytes() == SHARD
    assert hub.sent_bytes < 1.5 * len(SHARD), "at most the last piece was sent twice"


def _stall(answer: Answer) -> bool:
    if not _is_shard(answer):
        return False
    begin = int((answer.headers.get("Range") or "bytes=0-")[6:].rstrip("-"))
    if begin == 0:
        answer.start(200, {"X-Repo-Commit": COMMIT, "Content-Length": str(len(SHARD))})
        answer.send(_cut_after(21_000_000))
        answer.wfile.flush()
    answer.say_nothing()
    return True


def test_a_start_after_a_broken_one_goes_on_where_that_stopped(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.fault = _stall
    message = _error(_resolve(hub, tmp_path))
    assert "the download of model.safetensors was interrupted (ReadTimeout" in message
    hub.fault, sent = None, hub.sent_bytes
    folder = _folder(_resolve(hub, tmp_path))
    assert (folder / "model.safetensors").read_bytes() == SHARD
    assert hub.sent_bytes - sent < len(SHARD) / 2


def _kill_midway(hub: FakeHub, home: Path) -> Path:
    """Start a download, kill -9 it when the first part of the shard is on disk; return the part."""
    hub.fault = _stall
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, REPOSITORY],
        env=_environ(home, hub.url, HF_HUB_DOWNLOAD_TIMEOUT="60"),
        stderr=subprocess.DEVNULL,
    )
    deadline_s = time.monotonic() + 60
    try:
        while not any(part.stat().st_size >= 10_000_000 for part in home.rglob("*.partial")):
            assert process.poll() is None, "it ended too early"
            assert time.monotonic() < deadline_s, "no part of the shard came"
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    hub.fault = None
    (part,) = home.rglob("*.partial")
    return part


def test_a_start_after_kill_9_goes_on_where_that_was(hub: FakeHub, tmp_path: Path) -> None:
    _kill_midway(hub, tmp_path)
    sent = hub.sent_bytes
    folder = _folder(_resolve(hub, tmp_path))
    assert (folder / "model.safetensors").read_bytes() == SHARD
    assert hub.sent_bytes - sent < 0.7 * len(SHARD)


def test_a_part_that_was_damaged_meanwhile_is_noticed_and_thrown_away(
    hub: FakeHub, tmp_path: Path
) -> None:
    part = _kill_midway(hub, tmp_path)
    part.write_bytes(bytes(part.stat().st_size))
    assert "does not match the checksum" in _error(_resolve(hub, tmp_path))
    assert (_folder(_resolve(hub, tmp_path)) / "model.safetensors").read_bytes() == SHARD


def test_a_disk_without_room_is_refused_before_the_first_byte(hub: FakeHub, tmp_path: Path) -> None:
    with _small_disk(tmp_path, "8m") as small:
        message = _error(_resolve(hub, small))
        assert "needs 0.02 GB more" in message
        assert "0.01 GB free" in message
        assert hub.sent_bytes == 0


def test_a_disk_that_fills_up_while_downloading_is_named_and_nothing_half_is_left(
    hub: FakeHub, tmp_path: Path
) -> None:
    message = _error(_resolve(hub, tmp_path, largest_file=15_000_000))
    assert "the disk is full: model.safetensors does not fit into" in message
    assert "HF_HOME" in message
    assert not list(tmp_path.rglob("snapshots/*/model.safetensors"))
    assert (_folder(_resolve(hub, tmp_path)) / "model.safetensors").read_bytes() == SHARD


class _small_disk:
    """A tmpfs of a given size; skips where this process may not mount."""

    def __init__(self, parent: Path, size: str) -> None:
        self.path = parent / "disk"
        self._size = size

    def __enter__(self) -> Path:
        self.path.mkdir()
        mount = shutil.which("mount")
        options = ["-t", "tmpfs", "-o", f"size={self._size}", "tmpfs", str(self.path)]
        if mount is None or subprocess.run([mount, *options], capture_output=True).returncode:
            # A container without privileges may not, and a disk cannot be filled otherwise.
            pytest.skip("needs the right to mount a tmpfs")
        return self.path

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", str(self.path)], check=True)


def test_what_is_neither_a_folder_nor_an_id_is_refused_without_asking_anybody(
    hub: FakeHub, tmp_path: Path
) -> None:
    assert "this folder does not exist" in _error(
        _resolve(hub, tmp_path, str(tmp_path / "none/at/all"))
    )
    (tmp_path / "file").touch()
    assert "is a file" in _error(_resolve(hub, tmp_path, str(tmp_path / "file")))
    assert hub.requests == []


def test_a_repository_without_weights_or_configuration_lists_what_it_holds(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.files = {"README.md": b"", "run.py": b""}
    assert "found README.md, run.py" in _error(_resolve(hub, tmp_path))


def test_a_model_loads_by_its_id_as_it_does_from_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="needs the train extra")
    checkpoint = FIXTURES / "openvla_tiny/checkpoint"
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    code = """
import sys, torch
from crane_x7_vla_rl.policies.openvla.weights.loading import load
ours, theirs = (load(name).model for name in sys.argv[1:])
assert ours.norm_stats == theirs.norm_stats
for key, values in ours.state_dict().items():
    assert torch.equal(values, theirs.state_dict()[key]), key
"""
    with FakeHub(files | {"modeling_prismatic.py": FILES["modeling_evil.py"]}) as hub:
        done = subprocess.run(
            [sys.executable, "-c", code, f"{REPOSITORY}@v1", str(checkpoint)],
            capture_output=True, text=True, timeout=110, check=False,
            env=_environ(tmp_path, hub.url),
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
