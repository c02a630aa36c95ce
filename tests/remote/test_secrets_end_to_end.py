"""Real processes with secrets as files and secret boxes give them: they work, nobody shows them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import REPOSITORY, FakeHub

pytest.importorskip("huggingface_hub", reason="needs the train extra")

TOKEN = "hf_aSecretThatNobodyMaySee"
STATISTICS = b'{"crane_x7": {"action": {"q01": [0], "q99": [1], "mask": [true]}}}'
FILES = {
    "config.json": b"{}", "dataset_statistics.json": STATISTICS,
    "model.safetensors": bytes(64), "tokenizer.json": b"{}",
}  # fmt: skip


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub(dict(FILES), token=TOKEN) as hub:
        yield hub


def _run(
    module: str, *words: str, hub: FakeHub, home: Path, **env: str
) -> subprocess.CompletedProcess[str]:
    prefixes = ("HF_", "HUGGING", "VLA_", "ROSBRIDGE_", "WANDB_")
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(prefixes) and not key.lower().endswith("_proxy")
    }
    hub_env = {
        "HF_HOME": str(home), "HF_ENDPOINT": hub.url, "HF_HUB_ETAG_TIMEOUT": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        capture_output=True, text=True, timeout=110, check=False, env=kept | hub_env | env,
    )  # fmt: skip


def _infer(hub: FakeHub, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    where = ("--vla-model-path", REPOSITORY, "--vla-device", "cpu", "--rosbridge-host", "127.0.0.1")
    words = ("infer", "--log-level", "debug", *where, "--rosbridge-port", "9")
    return _run("crane_x7_remote", *words, hub=hub, home=home, **env)


def _sft(hub: FakeHub, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    words = ("sft", "--log-level", "debug", "--backend", "openvla", "--model", REPOSITORY)
    where = ("--data-root", REPOSITORY, "--output-dir", str(home / "run"), "--device", "cpu")
    return _run("crane_x7_vla_rl.training.cli", *words, *where, hub=hub, home=home, **env)


@pytest.mark.parametrize(
    "written",
    [
        # What is stripped is in tests/rl/test_variables.py.
        pytest.param(f"{TOKEN}\n", marks=pytest.mark.slow), f" {TOKEN}\r\n",
        pytest.param(f'"{TOKEN}"', marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_infer_uses_a_token_with_more_at_its_ends_and_never_shows_it(
    hub: FakeHub, tmp_path: Path, written: str
) -> None:
    done = _infer(hub, tmp_path, HF_TOKEN=written)
    said = done.stdout + done.stderr
    assert TOKEN not in said
    assert "answered 401" not in said
    assert "did not answer" not in said
    assert any("model.safetensors" in request for request in hub.requests), said
    assert done.returncode == 5, "a checkpoint without weights is all that is wrong"


def test_sft_uses_a_token_with_a_line_break_and_never_shows_it(
    hub: FakeHub, tmp_path: Path
) -> None:
    done = _sft(hub, tmp_path, HF_TOKEN=f"{TOKEN}\n", HUGGING_FACE_HUB_TOKEN=f"{TOKEN}\n")
    said = done.stdout + done.stderr
    assert TOKEN not in said
    assert "Traceback" not in said, said
    assert "answered 401" not in said
    assert hub.requests


@pytest.mark.parametrize("command", [_infer, _sft])
@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "HUGGING_FACE_HUB_TOKEN"])
def test_a_secret_that_is_damaged_inside_is_named_and_not_shown(
    hub: FakeHub, tmp_path: Path, command: object, name: str
) -> None:
    assert callable(command)
    done = command(hub, tmp_path, **{name: f"{TOKEN}\nsecondHalfOfIt"})
    said = done.stdout + done.stderr
    assert done.returncode == 3, said
    assert f"{name}=***: holds a line break at" in said
    assert TOKEN not in said
    assert "secondHalfOfIt" not in said
    assert hub.requests == []


def test_a_token_that_a_server_sends_back_is_not_shown_either(hub: FakeHub, tmp_path: Path) -> None:
    hub.fault = lambda answer: (
        answer.refuse(400, X_Error_Message=f"bad token {TOKEN} \x9b2J is no token") is None
    )
    done = _infer(hub, tmp_path, HF_TOKEN=f"{TOKEN}\n")
    said = done.stdout + done.stderr
    assert "the Hub answered 400" in said
    assert "bad token ***" in said
    assert TOKEN not in said
    assert "\x9b" not in said


def test_a_stored_token_is_masked_like_one_of_the_environment(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    hub.fault = lambda answer: answer.refuse(400, X_Error_Message=f"bad token {TOKEN}") is None
    said = _infer(hub, tmp_path).stderr
    assert "bad token ***" in said
    assert TOKEN not in said


def test_unknown_words_that_are_secrets_are_not_repeated(hub: FakeHub, tmp_path: Path) -> None:
    for module, command in (
        ("crane_x7_remote", "infer"),
        ("crane_x7_vla_rl.training.cli", "validate"),
    ):
        words = (command, "--token", TOKEN)
        done = _run(module, *words, hub=hub, home=tmp_path, HF_TOKEN=f"{TOKEN}\n")
        assert done.returncode == 2
        assert TOKEN not in done.stderr
