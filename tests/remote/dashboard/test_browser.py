"""The page in headless Chromium, driven by Playwright; scripts/setup-browser installs it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser_rig import WAIT_MS, chromium, opened
from dashboard_rig import RunningDashboard
from driving_rig import CLEAN, Driving
from loop_rig import FaultyRobot
from playwright.sync_api import Browser, expect
from tailnet_rig import free_port

from crane_x7_remote.dashboard.board import Board
from crane_x7_remote.dashboard.control import Control
from crane_x7_remote.dashboard.robot import Robot, RobotTopics
from crane_x7_remote.guard.door import STOP_PATH
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_remote.rosbridge.connection import LinkConfig
from crane_x7_remote.settings import Settings
from crane_x7_remote.sim_robot.arm import still_picture

WRIST = "/wrist/image_raw/compressed"
SETTINGS = Settings()
OLD = re.compile(r"wrist \d+\.\d s old")
pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture
def driving(tmp_path: Path) -> Iterator[Driving]:
    with Driving(tmp_path) as driving:
        driving.wait_driving()
        yield driving


def test_space_in_the_instruction_is_a_blank(browser: Browser, driving: Driving) -> None:
    page = opened(browser, driving.page)
    page.keyboard.press("/")
    page.keyboard.type("pick up")
    assert page.locator("#instruction").input_value() == "pick up"
    assert driving.guard.state()["stopped"] is None
    page.close()


def test_a_page_whose_loop_is_gone_says_that_its_values_are_old(
    browser: Browser, driving: Driving
) -> None:
    page = opened(browser, driving.page)
    driving.loop.kill()
    expect(page.locator("#banner")).to_contain_text("No connection", timeout=60_000)
    expect(page.locator("#banner")).to_contain_text("emergency stop")
    page.close()


def test_an_instruction_is_never_markup(browser: Browser, driving: Driving) -> None:
    page = opened(browser, driving.page)
    page.locator("#instruction").fill("<img src=x onerror=alert(1)> & <b>red</b>")
    page.locator("#instruction").press("Enter")
    expect(page.locator("#task-now")).to_contain_text("<b>red</b>", timeout=WAIT_MS)
    assert page.locator("#task img, #task b").count() == 0
    page.close()


def test_the_wrist_cameras_image_is_in_a_corner_of_the_other(browser: Browser) -> None:
    """Its shape, here a square, is not taken for that of the base camera's picture."""
    board = Board()
    with FaultyRobot(wrist_topic=WRIST) as source:
        source.picture, source.wrist_picture = still_picture(640, 480), still_picture(300, 300)
        link = ClientConfig("127.0.0.1", source.port, camera_topic=None, joint_states_topic=None,
                            instruction_topic=None)  # fmt: skip
        topics = RobotTopics(SETTINGS.camera_topic, SETTINGS.joint_states_topic,
                             SETTINGS.instruction_topic, "", WRIST)  # fmt: skip
        with Robot(board, link, topics, None, with_arm=True) as robot:
            control = Control(robot, LinkConfig("127.0.0.1", source.port, path=STOP_PATH), None)
            with RunningDashboard(board, control) as served:
                page = opened(browser, served.port)
                expect(page.locator("#wrist-view")).to_be_visible(timeout=WAIT_MS)
                expect(page.locator("#wrist-age")).to_have_text(OLD, timeout=WAIT_MS)
                view, small = (
                    page.locator(f"#{name}").bounding_box() for name in ("view", "wrist")
                )
                page.close()
    assert view is not None
    assert small is not None
    assert view["width"] / view["height"] == pytest.approx(4 / 3, rel=0.05)
    assert small["width"] / small["height"] == pytest.approx(1, rel=0.05)
    assert small["width"] < 0.35 * view["width"]
    assert small["x"] + small["width"] <= view["x"] + view["width"]


def test_a_training_is_shown_from_its_folder(browser: Browser, tmp_path: Path) -> None:
    rows = [
        f'{{"step": {step}, "recent_success": {step / 100}, "episode_return": {step / 10},'
        f' "approx_kl": 0.01, "clip_fraction": 0.1, "env_steps_s": 800.0}}\n'
        for step in range(1, 61)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(rows))
    port = free_port()
    command = [
        sys.executable, "-m", "crane_x7_remote", "dashboard", "--run", str(tmp_path),
        "--dashboard-listen", f"127.0.0.1:{port}",
    ]  # fmt: skip
    served = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=CLEAN)
    try:
        assert served.stdout is not None
        assert served.stdout.readline().startswith("serving http://127.0.0.1")
        page = opened(browser, port)
        expect(page.locator(".curve")).to_have_count(5, timeout=WAIT_MS)
        expect(page.locator(".curve strong").first).to_have_text("60 %")
        expect(page.locator("#stop")).to_be_hidden()
        page.close()
    finally:
        served.terminate()
        served.communicate(timeout=30)
    assert served.returncode == 0
