"""`train --dashboard`: a page in its own process, from the first update to the end."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from loop_rig import wait_until
from tailnet_rig import free_port

from crane_x7_vla_rl.training import dashboard, settings
from crane_x7_vla_rl.training.errors import ConfigError


def metrics(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, ConnectionError):
        return ""


@pytest.fixture
def new_children() -> Callable[[], list[psutil.Process]]:
    """The children of this process that the test started; a worker has others of earlier tests."""
    before = set(psutil.Process().children())
    return lambda: [child for child in psutil.Process().children() if child not in before]


def test_the_page_is_there_before_the_folder_and_ends_with_the_training(
    tmp_path: Path, new_children: Callable[[], list[psutil.Process]]
) -> None:
    port, run = free_port(), tmp_path / "run"
    with dashboard.shown(port, run):
        (child,) = new_children()
        wait_until(lambda: metrics(port), 60, "the page is served")
        run.mkdir()
        (run / "metrics.jsonl").write_text(json.dumps({"step": 7, "success": 0.5}) + "\n")
        wait_until(lambda: "crane_x7_training_step 7.0" in metrics(port), 20, "the update is shown")
    assert not child.is_running()


def test_a_training_continues_when_its_page_dies(
    tmp_path: Path, new_children: Callable[[], list[psutil.Process]]
) -> None:
    with dashboard.shown(free_port(), tmp_path):
        (child,) = new_children()
        child.kill()
        child.wait(10)
    assert not child.is_running()


def test_without_the_flag_nothing_is_started(
    tmp_path: Path, new_children: Callable[[], list[psutil.Process]]
) -> None:
    with dashboard.shown(None, tmp_path):
        assert new_children() == []


def test_of_several_processes_the_first_shows_the_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    new_children: Callable[[], list[psutil.Process]],
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert not settings.is_first_process()
    with dashboard.shown(free_port(), tmp_path):
        assert new_children() == []
    assert settings.is_first_process({"RANK": "0"})
    assert settings.is_first_process({})


def test_a_wrong_port_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--dashboard is 99999"), dashboard.shown(99999, tmp_path):
        pass
