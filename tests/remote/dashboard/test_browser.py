"""The page in headless Chromium, driven by Playwright; scripts/setup-browser installs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from driving_rig import CLEAN, Driving
from loop_rig import wait_until
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tailnet_rig import free_port

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
WAIT_MS = 30_000
"""A busy machine draws slowly."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    assert program is not None, "no Chromium on this machine; run scripts/setup-browser"
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=program, args=arguments)
        yield launched
        launched.close()


@pytest.fixture
def driving(tmp_path: Path) -> Iterator[Driving]:
    with Driving(tmp_path) as driving:
        driving.wait_driving()
        yield driving


def opened(browser: Browser, port: int, width: int = 1280, height: int = 860) -> Page:
    """Open the page; a script's error or a refused resource fails the test at `close`."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(WAIT_MS)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if "Policy" in line.text else None)
    page.goto(f"http://127.0.0.1:{port}/")
    expect(page.locator("body")).not_to_have_attribute("data-mode", "waiting", timeout=WAIT_MS)
    assert faults == []
    return page


def has_picture(page: Page) -> bool:
    """Whether the canvas shows something else than black."""
    return bool(
        page.evaluate(
            "() => { const canvas = document.getElementById('camera');"
            " const { data } = canvas.getContext('2d')"
            ".getImageData(0, 0, canvas.width, canvas.height);"
            " return data.some((value, index) => index % 4 !== 3 && value > 40); }"
        )
    )


def test_an_operator_says_stops_and_resumes_with_the_keyboard_alone(
    browser: Browser, driving: Driving
) -> None:
    """And the policy hangs meanwhile: the stop needs neither it nor the loop."""
    page = opened(browser, driving.page)
    expect(page.locator("#chip-guard")).to_have_text("guard passes", timeout=WAIT_MS)
    wait_until(lambda: has_picture(page), 30, "the camera is shown")
    expect(page.locator("#path line").first).to_be_attached(timeout=WAIT_MS)
    page.keyboard.press("/")
    page.keyboard.type("hang, please")
    page.keyboard.press("Enter")
    expect(page.locator("#task-answer")).to_have_text("accepted: hang, please", timeout=WAIT_MS)
    expect(page.locator("#task-now")).to_contain_text("hang, please", timeout=WAIT_MS)
    expect(page.locator("#hold-now")).to_contain_text("policy", timeout=WAIT_MS)
    page.keyboard.press("Escape")
    page.keyboard.press("Space")
    expect(page.locator("#stop-answer")).to_contain_text("stopped", timeout=WAIT_MS)
    assert driving.guard.state()["stopped"] is not None
    expect(page.locator("#chip-guard")).to_have_text("guard: stopped", timeout=WAIT_MS)
    page.keyboard.press("Space")  # a second press must not resume
    assert driving.guard.state()["stopped"] is not None
    page.locator("#resume").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#stop-answer")).to_contain_text("resumed", timeout=WAIT_MS)
    assert driving.guard.state()["stopped"] is None
    page.close()


def test_space_in_the_instruction_is_a_blank(browser: Browser, driving: Driving) -> None:
    page = opened(browser, driving.page)
    page.keyboard.press("/")
    page.keyboard.type("pick up")
    assert page.locator("#instruction").input_value() == "pick up"
    assert driving.guard.state()["stopped"] is None
    page.close()


def test_two_viewers_and_one_that_is_cut_and_comes_back(browser: Browser, driving: Driving) -> None:
    first = opened(browser, driving.page)
    second = opened(browser, driving.page)
    second.context.set_offline(True)
    second.evaluate("() => 0")
    expect(first.locator("#chip-loop")).not_to_have_text("loop", timeout=WAIT_MS)
    second.context.set_offline(False)
    second.reload()
    expect(second.locator("#chip-link")).to_contain_text("link", timeout=WAIT_MS)
    for page in (first, second):
        wait_until(lambda page=page: has_picture(page), 30, "the camera is shown")  # type: ignore[misc]
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


@pytest.mark.parametrize(("width", "height"), [(390, 844), (768, 1024), (1440, 900)])
def test_the_stop_button_is_in_sight_on_every_screen(
    browser: Browser, driving: Driving, width: int, height: int
) -> None:
    page = opened(browser, driving.page, width, height)
    expect(page.locator("#stop")).to_be_in_viewport(timeout=WAIT_MS)
    box = page.locator("#stop").bounding_box()
    assert box is not None
    assert box["height"] >= 60
    assert box["width"] >= 200
    overflow = "() => document.documentElement.scrollWidth - window.innerWidth"
    assert page.evaluate(overflow) <= 0, "nothing is wider than the screen"
    page.close()


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
