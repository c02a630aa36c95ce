"""Each command that has a page, as a user starts it, looked at with Chromium."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import rl_rig
import training_rig
from browser_rig import WAIT_MS, Watched, chromium, opened
from chain_rig import ROBOT
from driving_rig import CLEAN
from loop_rig import wait_until
from places import RIGS
from playwright.sync_api import Browser, Page, expect
from pty_rig import OnTerminal
from tailnet_rig import Process, free_port

from crane_x7_vla_rl.data.lerobot import open_lerobot

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]
COMMAND = [sys.executable, "-m", "crane_x7_remote"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@contextmanager
def program(command: list[str], log: Path) -> Iterator[Process]:
    process = Process(command, log, base=CLEAN)
    try:
        yield process
    finally:
        process.stop()


def wait_said(process: Process, pattern: str, timeout_s: float = 120.0) -> re.Match[str]:
    def said() -> re.Match[str] | None:
        process.check()
        return re.search(pattern, process.log.read_text(errors="replace"))

    wait_until(said, timeout_s, f"{process.log.name} says {pattern}")
    found = said()
    assert found is not None
    return found


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@pytest.fixture
def guard(tmp_path: Path) -> Iterator[int]:
    """The port of a guard before a simulated robot."""
    with program(ROBOT, tmp_path / "robot.log") as robot:
        yield int(wait_said(robot, r"guard on port (\d+)")[1])


def at(port: int) -> list[str]:
    return ["--rosbridge-host", "127.0.0.1", "--rosbridge-port", str(port)]


def test_the_demo_shows_its_run(browser: Browser, tmp_path: Path) -> None:
    port, figures = free_port(), tmp_path / "figures.json"
    command = [
        *COMMAND, "demo", "--policy", "color-servo", "--then", "", "--no-record", "--dashboard",
        str(port), "--output-dir", str(tmp_path / "out"), "--json", str(figures),
    ]  # fmt: skip
    with program(command, tmp_path / "demo.log") as demo:
        wait_said(demo, rf"dashboard: http://127\.0\.0\.1:{port}")
        (loop,) = (tmp_path / "out").glob("*/*loop*.log")
        wait_until(lambda: "serving http" in loop.read_text(), 120, "the page is served")
        watched = Watched(browser, port)
        watched.wait_images()
        expect(watched.page.locator("#who")).to_contain_text("color-servo")
        expect(watched.page.locator("#task-now")).to_contain_text("red cube")
        expect(watched.page.locator("#chip-guard")).to_have_text("guard passes", timeout=WAIT_MS)
        expect(watched.page.locator("#path line").first).to_be_attached(timeout=WAIT_MS)
        expect(watched.page.locator("#banner")).to_contain_text("ended", timeout=120_000)
        watched.page.close()
        assert demo.popen.wait(60) == 0, demo.tail
    assert json.loads(figures.read_text())["picked"] == ["red"]


def test_a_trial_shows_its_episodes_and_obeys_the_stop(
    browser: Browser, guard: int, tmp_path: Path
) -> None:
    port = free_port()
    command = [
        sys.executable, str(RIGS / "infer_with_policy.py"), "slow", "trial", *at(guard),
        "--camera-pose", "sim", "--episodes", "2", "--timeout", "100", "--output-dir",
        str(tmp_path), "--dashboard", str(port), "--log-level", "info",
    ]  # fmt: skip
    with OnTerminal(command, CLEAN) as trial:
        trial.wait_for("ready: reset the scene")
        wait_until(lambda: trial.read() and listens(port), 60, "the page is served")
        watched = Watched(browser, port)
        page = watched.page
        watched.wait_images()
        trial.type(b"\n")
        trial.wait_for("the policy drives")
        expect(page.locator("#chip-loop")).to_have_text("driving", timeout=WAIT_MS)
        expect(page.locator("#path line").first).to_be_attached(timeout=WAIT_MS)
        page.keyboard.press("Space")
        expect(page.locator("#stop-answer")).to_contain_text("stopped", timeout=WAIT_MS)
        expect(page.locator("#chip-guard")).to_have_text("guard: stopped", timeout=WAIT_MS)
        expect(page.locator("#chip-loop")).not_to_have_text("driving", timeout=WAIT_MS)
        page.locator("#resume").press("Enter")
        expect(page.locator("#stop-answer")).to_contain_text("resumed", timeout=WAIT_MS)
        expect(page.locator("#chip-loop")).to_have_text("holds: paused", timeout=WAIT_MS)
        trial.type(b"p")  # the person beside the arm decides when it moves again
        loop = page.locator("#chip-loop")
        # A trial whose terminal nobody reads stops at its next line, before it takes the key.
        wait_until(lambda: trial.read() and loop.inner_text() == "driving", 30, "the loop drives")
        trial.type(b"s")
        trial.wait_for("episode 1: success, key")
        trial.wait_for("ready: reset the scene")
        trial.type(b"q")
        assert trial.wait_end() == 0
        page.close()


def test_a_recording_is_started_stopped_and_discarded_from_the_page(
    browser: Browser, guard: int, tmp_path: Path
) -> None:
    port, folder = free_port(), tmp_path / "episodes"
    board = [*COMMAND, "dashboard", *at(guard), "--dashboard-listen", f"127.0.0.1:{port}"]
    words = [
        *COMMAND, "record", str(folder), *at(guard), "--action", "next", "--instruction", "wave",
    ]  # fmt: skip
    with (
        program(board, tmp_path / "dashboard.log") as served,
        program(words, tmp_path / "record.log") as recorder,
    ):
        wait_said(served, "serving http")
        page = opened(browser, port)
        state, answer = page.locator("#record-state"), page.locator("#record-answer")
        expect(state).to_contain_text("ready · 0 episodes", timeout=WAIT_MS)
        recorded(page, "#record-stop")
        expect(state).to_contain_text("ready · 1 episodes", timeout=WAIT_MS)
        recorded(page, "#record-discard")
        expect(answer).to_have_text("recorder: discard")
        expect(state).to_contain_text("ready · 1 episodes", timeout=WAIT_MS)
        page.keyboard.press("r")
        expect(page.locator("#chip-record")).to_contain_text("recording", timeout=WAIT_MS)
        page.wait_for_timeout(1500)
        page.keyboard.press("r")
        expect(state).to_contain_text("ready · 2 episodes", timeout=WAIT_MS)
        assert recorder.stop(60) == 0, recorder.tail
        expect(state).to_have_text("no recorder runs", timeout=WAIT_MS)
        page.close()
    episodes = open_lerobot(folder)
    assert len(episodes) == 2


def recorded(page: Page, end: str) -> None:
    """Record for a second and a half by the page's buttons."""
    page.locator("#record-start").click()
    expect(page.locator("#chip-record")).to_contain_text("recording", timeout=WAIT_MS)
    expect(page.locator("#record-start")).to_be_disabled()
    page.wait_for_timeout(1500)
    page.locator(end).click()


@pytest.mark.parametrize("command", ["sft", "train"])
def test_a_training_shows_its_curves_while_it_runs(
    browser: Browser, tmp_path: Path, command: str
) -> None:
    port, run = free_port(), tmp_path / "run"
    argv = {
        "sft": training_rig.flags(run, "--max-steps", "99999", "--save-steps", "99999"),
        "train": rl_rig.flags(run, "--num-updates", "99999", "--save-every", "99999"),
    }[command]
    words = [sys.executable, "-m", "crane_x7_vla_rl.training.cli", command, *argv]
    with program([*words, "--dashboard", str(port)], tmp_path / "train.log") as training:
        wait_until(lambda: len(metrics(run)) >= 2, 200, "two updates")
        page = opened(browser, port)
        expect(page.locator("#who")).to_contain_text("training")
        expect(page.locator("#run-state")).to_contain_text("update", timeout=WAIT_MS)
        expect(page.locator(".curve").first).to_be_visible(timeout=WAIT_MS)
        expect(page.locator("#stop")).to_be_hidden()
        shown = page.locator("#run-state").inner_text()
        expect(page.locator("#run-state")).not_to_have_text(shown, timeout=WAIT_MS)
        training.stop(60)
        page.close()
    assert not listens(port), "the page has ended with its training"


def metrics(run: Path) -> list[str]:
    path = run / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []
