"""The page for a person: on a phone, with a keyboard alone, and readable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from browser_rig import WAIT_MS, Watched, chromium, load
from dashboard_rig import post
from driving_rig import Driving
from playwright.sync_api import Browser, Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
SCREENS: dict[str, dict[str, Any]] = {
    "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
    "small phone": {"viewport": {"width": 320, "height": 568}, "is_mobile": True,
                    "has_touch": True},
    "phone on its side": {"viewport": {"width": 844, "height": 390}, "is_mobile": True,
                          "has_touch": True},
    "tablet": {"viewport": {"width": 768, "height": 1024}, "is_mobile": True, "has_touch": True},
    "large desktop": {"viewport": {"width": 1440, "height": 900}},
    "desktop": {"viewport": {"width": 1280, "height": 860}},
}  # fmt: skip
CONTRAST = 4.5
"""WCAG 2.2, 1.4.3, for text of normal size."""
SMALLEST_PX = 12.0
TOUCH_PX = 40


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driving]:
    with Driving(tmp_path_factory.mktemp("driving")) as driving:
        yield driving


@pytest.fixture
def driving(started: Driving) -> Driving:
    """The one of all tests, driving."""
    assert post(started.page, "/resume", {}).json["ok"]
    started.wait_driving()
    return started


def shown(browser: Browser, driving: Driving, screen: str) -> Page:
    page = browser.new_context(**SCREENS[screen]).new_page()
    load(page, driving.page)
    expect(page.locator("#chip-guard")).to_have_text("guard passes", timeout=WAIT_MS)
    expect(page.locator("#stages td.number").first).to_be_attached(timeout=WAIT_MS)
    return page


@pytest.mark.parametrize("screen", SCREENS)
def test_nothing_is_wider_than_the_screen_and_nothing_leaves_its_card(
    browser: Browser, driving: Driving, screen: str
) -> None:
    page = shown(browser, driving, screen)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate(
        "[...document.querySelectorAll('article *, #task *, #stop-bar *, header *')]"
        ".filter(each => each.checkVisibility() && !each.closest('.unseen'))"
        ".filter(each => {"
        "  const inner = each.getBoundingClientRect();"
        "  const outer = each.closest('article, #task, #stop-bar, header')"
        "    .getBoundingClientRect();"
        "  return inner.width && (inner.right > outer.right + 1 || inner.left < outer.left - 1);"
        "}).map(each => `${each.tagName} ${each.id} ${each.textContent}`)"
    ) == []  # fmt: skip
    page.close()


@pytest.mark.parametrize("screen", SCREENS)
def test_the_camera_and_the_stop_are_seen_at_once_and_the_picture_is_not_distorted(
    browser: Browser, driving: Driving, screen: str
) -> None:
    page = shown(browser, driving, screen)
    for name in ("#camera", "#stop"):
        expect(page.locator(name)).to_be_in_viewport(ratio=0.9, timeout=WAIT_MS)
    width, height, ratio = page.evaluate(
        "(() => { const each = document.getElementById('camera');"
        " return [each.clientWidth, each.clientHeight, each.width / each.height]; })()"
    )
    assert width / height == pytest.approx(ratio, rel=0.02)
    box = page.locator("#stop").bounding_box()
    assert box is not None
    assert box["height"] >= (TOUCH_PX if screen == "phone on its side" else 60)
    assert box["width"] >= 200
    page.close()


def test_a_thumb_tells_the_loop_stops_and_resumes(browser: Browser, driving: Driving) -> None:
    page = shown(browser, driving, "phone")
    assert "Space" not in page.locator("#stop").inner_text()
    page.locator("#instruction").tap()
    page.keyboard.type("pick up the blue cube")
    page.locator("#task button").tap()
    answer = page.locator("#task-answer")
    expect(answer).to_have_text("accepted: pick up the blue cube", timeout=WAIT_MS)
    page.locator("#stop").tap()
    expect(page.locator("#stop-answer")).to_contain_text("stopped", timeout=WAIT_MS)
    assert driving.guard.state()["stopped"] is not None
    page.locator("#resume").tap()
    expect(page.locator("#stop-answer")).to_contain_text("resumed", timeout=WAIT_MS)
    assert driving.guard.state()["stopped"] is None
    for button in page.locator("button").all():
        box = button.bounding_box()
        assert box is None or box["height"] >= TOUCH_PX
    page.close()


def test_tab_reaches_everything_in_the_order_of_the_screen_and_shows_where_it_is(
    browser: Browser, driving: Driving
) -> None:
    page = shown(browser, driving, "desktop")
    page.keyboard.press("Space")
    expect(page.locator("#resume")).to_be_visible(timeout=WAIT_MS)
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        focus = page.evaluate(
            "(() => { const each = document.activeElement, css = getComputedStyle(each);"
            " return [each.id || each.textContent, css.outlineStyle, parseFloat(css.outlineWidth)];"
            "})()"
        )
        reached.append(focus[0])
        assert focus[1] == "solid"
        assert focus[2] >= 2
    assert reached == ["instruction", "Send", "stop", "resume"]
    page.keyboard.press("Enter")
    expect(page.locator("#stop-answer")).to_contain_text("resumed", timeout=WAIT_MS)
    assert driving.guard.state()["stopped"] is None
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "instruction"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement === document.body")
    page.close()


def test_space_stops_wherever_the_focus_is_and_presses_no_other_button(
    browser: Browser, driving: Driving
) -> None:
    page = shown(browser, driving, "desktop")
    page.locator("#task button").focus()
    page.keyboard.press("Space")
    expect(page.locator("#stop-answer")).to_contain_text("stopped", timeout=WAIT_MS)
    expect(page.locator("#resume")).to_be_visible(timeout=WAIT_MS)
    with page.expect_response("**/stop"):
        page.keyboard.press("Space")  # a second press must not resume
    assert driving.guard.state()["stopped"] is not None
    page.locator("#resume").focus()
    with page.expect_response("**/stop"):
        page.keyboard.press("Space")
    assert driving.guard.state()["stopped"] is not None
    page.keyboard.press("Enter")
    expect(page.locator("#stop-answer")).to_contain_text("resumed", timeout=WAIT_MS)
    page.close()


READING = """(() => {
  const rgba = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (each) => {
    for (let at = each; at; at = at.parentElement) {
      const found = rgba(getComputedStyle(at).backgroundColor);
      if (found[3] === 1) return found;
    }
    return [255, 255, 255, 1];
  };
  return [...document.querySelectorAll("body *")]
    .filter((each) => each.checkVisibility() && !each.closest(".unseen, figcaption, :disabled"))
    .filter((each) => [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .map((each) => {
      const css = getComputedStyle(each);
      const [one, other] = [light(rgba(css.color)), light(ground(each))].sort((a, b) => b - a);
      return [each.textContent.trim().slice(0, 40), (one + 0.05) / (other + 0.05), parseFloat(css.fontSize)];
    });
})()"""  # noqa: E501 - one script


@pytest.mark.parametrize("screen", ["phone", "desktop"])
def test_every_text_can_be_read(browser: Browser, driving: Driving, screen: str) -> None:
    page = shown(browser, driving, screen)
    texts = page.evaluate(READING)
    assert len(texts) > 40
    pale = [text for text in texts if text[1] < CONTRAST]
    assert pale == []
    small = [text for text in texts if text[2] < SMALLEST_PX]
    assert small == []
    page.close()


def test_a_reader_of_the_screen_finds_names_and_hears_answers(
    browser: Browser, driving: Driving
) -> None:
    page = shown(browser, driving, "desktop")
    expect(page.get_by_role("button", name="STOP Space")).to_be_visible()
    for word in ("Start", "Stop", "Discard"):
        expect(page.get_by_role("button", name=f"{word} recording")).to_be_visible()
    expect(page.get_by_role("textbox", name="Instruction")).to_be_visible()
    expect(page.get_by_role("img", name="Camera image")).to_be_visible()
    expect(page.locator("#stop-answer")).to_have_attribute("aria-live", "assertive")
    expect(page.locator("#banner")).to_have_attribute("role", "alert")
    page.close()


def test_the_memory_of_a_page_stays_flat(browser: Browser, driving: Driving) -> None:
    """A shortened hour; the chart of 600 ticks is full after a minute, and grows until then."""
    watch_memory(browser, driving, seconds=72.0, settle_s=62.0)


@pytest.mark.slow
@pytest.mark.timeout(4000)
def test_the_memory_of_a_page_that_is_open_for_an_hour_stays_flat(
    browser: Browser, driving: Driving
) -> None:
    watch_memory(browser, driving, seconds=3600.0, settle_s=120.0)


def watch_memory(browser: Browser, driving: Driving, seconds: float, settle_s: float) -> None:
    """Watch, and compare the script's memory after `settle_s` and at the end."""
    watched = Watched(browser, driving.page)
    session = watched.page.context.new_cdp_session(watched.page)
    session.send("Performance.enable")

    def used() -> tuple[float, float]:
        session.send("HeapProfiler.collectGarbage")
        found = session.send("Performance.getMetrics")["metrics"]
        values = {each["name"]: each["value"] for each in found}
        return values["JSHeapUsedSize"] / 2**20, values["Nodes"]

    watched.page.wait_for_timeout(settle_s * 1000)
    begun_mib, begun_nodes = used()
    for _ in range(round((seconds - settle_s) / 10)):
        watched.page.wait_for_timeout(10_000)
    ended_mib, ended_nodes = used()
    print(f"{seconds:g} s: {watched.images} images, {begun_mib:.1f} MiB and {begun_nodes:g} nodes,"
          f" then {ended_mib - begun_mib:+.2f} MiB, {ended_nodes - begun_nodes:+g}")  # fmt: skip
    assert watched.images > seconds / 2
    assert ended_mib - begun_mib < 2.0
    assert ended_nodes - begun_nodes < 100
    watched.page.close()
