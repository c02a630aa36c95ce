"""The whole chain through real links, looked at with Chromium: each part is a process.

sim-robot ← guard ← `crane-x7-remote tunnel` ← `infer --dashboard` ← `ssh -L` ← Chromium.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser_rig import WAIT_MS, Watched, chromium, has_picture
from chain_rig import Chain, StopWatch
from containers import wait_for
from dashboard_rig import post, viewers
from playwright.sync_api import Browser, expect
from slow_link import LinkShape, SlowLink

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
MOBILE = LinkShape(mbit_s=2.0, round_trip_s=0.08)
NOTICED_S = 20.0
"""A page gives up a silent connection after 8 s, and then tries every 2 s at least."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    with Chain(tmp_path_factory.mktemp("chain")) as chain:
        yield chain


@pytest.fixture
def chain(started: Chain) -> Chain:
    """The one of all tests, driving."""
    if started.guard_state()["stopped"] is not None:
        assert post(started.dashboard, "/resume", {}).json["ok"]
    started.wait_moves()
    return started


def test_viewers_come_back_by_themselves_from_every_way_of_losing_a_link(
    browser: Browser, chain: Chain
) -> None:
    """None of them is loaded again, and each loss leaves the other viewer alone."""
    with SlowLink(chain.dashboard) as direct:
        far, near = Watched(browser, chain.page), Watched(browser, direct.port)
        for watched in (far, near):
            watched.wait_images()

        chain.ssh.kill()
        near.wait_images(20)
        expect(far.page.locator("#banner")).to_contain_text("Connecting again", timeout=WAIT_MS)
        expect(far.page.locator("#banner")).to_contain_text("emergency stop")
        chain.ssh.start()
        far.wait_images()
        expect(far.page.locator("#banner")).to_be_hidden()

        direct.cut()
        near.wait_images(10, NOTICED_S)

        direct.lose_connections()  # no end is told
        far.wait_images()
        near.wait_images(10, NOTICED_S)

        chain.link.go_dark()  # ssh notices, and so do its clients
        near.wait_images()
        chain.ssh.wait_gave_up()
        chain.link.come_back()
        chain.ssh.start()
        far.wait_images(10, NOTICED_S)

        for watched in (far, near):
            assert watched.loads == 1
            expect(watched.page.locator("#chip-guard")).to_have_text("guard passes")
        assert far.streams >= 3
        assert near.streams == 3
        assert chain.guard_state()["stopped"] is None
        far.page.close()
        near.page.close()


def test_a_stop_gets_through_although_the_pages_connections_have_died(
    browser: Browser, chain: Chain
) -> None:
    """A browser would reuse a connection that a router has forgotten, and wait for minutes."""
    with SlowLink(chain.dashboard) as direct:
        watched = Watched(browser, direct.port)
        watched.wait_images()
        direct.lose_connections()
        with StopWatch(chain) as watch:
            pressed_s = time.monotonic()
            watched.page.keyboard.press("Space")
            assert watch.after(pressed_s) < 3.0
        expect(watched.page.locator("#stop-answer")).to_contain_text("stopped", timeout=WAIT_MS)
        watched.page.close()


def test_a_stop_that_nobody_answers_says_so_in_time(browser: Browser, chain: Chain) -> None:
    with SlowLink(chain.dashboard) as direct:
        watched = Watched(browser, direct.port)
        watched.wait_images()
        direct.go_dark()
        watched.page.keyboard.press("Space")
        answer = watched.page.locator("#stop-answer")
        expect(answer).to_contain_text("NOT CONFIRMED", timeout=5000)
        expect(answer).to_contain_text("Use the emergency stop")
        direct.come_back()  # what was sent arrives, or a further attempt does
        expect(answer).to_contain_text("stopped", timeout=WAIT_MS)
        assert chain.guard_state()["stopped"] is not None
        watched.page.close()


def test_the_page_works_at_2_mbit_s_and_the_stop_overtakes_the_images(
    browser: Browser, tmp_path: Path
) -> None:
    """Four viewers share the link, so that it is full of images."""
    with Chain(tmp_path, MOBILE) as chain, viewers(chain.page, 3):
        chain.wait_moves()
        watched = Watched(browser, chain.page)
        watched.wait_images(10)
        before = watched.images
        watched.page.wait_for_timeout(5000)
        assert watched.images - before >= 4
        with StopWatch(chain) as watch:
            pressed_s = time.monotonic()
            watched.page.keyboard.press("Space")
            assert watch.after(pressed_s) < 1.0
        expect(watched.page.locator("#stop-answer")).to_contain_text("stopped", timeout=WAIT_MS)
        chip = watched.page.locator("#chip-guard")
        expect(chip).to_have_text("guard: stopped", timeout=WAIT_MS)
        watched.page.close()


def test_an_operator_far_away_tells_stops_and_resumes_an_arm(
    browser: Browser, chain: Chain
) -> None:
    """Once while the arm moves, and once while the policy hangs: for good, so this test is last."""
    watched = Watched(browser, chain.page)
    page = watched.page
    expect(page.locator("#chip-guard")).to_have_text("guard passes", timeout=WAIT_MS)
    watched.wait_images()
    assert has_picture(page)
    expect(page.locator("#path line").first).to_be_attached(timeout=WAIT_MS)

    with StopWatch(chain) as watch:
        pressed_s = time.monotonic()
        page.keyboard.press("Space")
        assert watch.after(pressed_s) < 1.0
    chain.wait_rest()
    expect(page.locator("#stop-answer")).to_contain_text("stopped", timeout=WAIT_MS)
    expect(page.locator("#chip-guard")).to_have_text("guard: stopped", timeout=WAIT_MS)
    page.locator("#resume").press("Enter")
    expect(page.locator("#stop-answer")).to_contain_text("resumed", timeout=WAIT_MS)
    chain.wait_moves()

    page.keyboard.press("/")
    page.keyboard.type("hang, please")
    page.keyboard.press("Enter")
    expect(page.locator("#task-answer")).to_have_text("accepted: hang, please", timeout=WAIT_MS)
    expect(page.locator("#hold-now")).to_contain_text("policy", timeout=WAIT_MS)
    page.keyboard.press("Escape")
    page.keyboard.press("Space")
    expect(page.locator("#stop-answer")).to_contain_text("stopped", timeout=WAIT_MS)
    assert "dashboard" in str(chain.guard_state()["stopped"])
    chain.wait_rest()
    page.locator("#resume").press("Enter")
    expect(page.locator("#stop-answer")).to_contain_text("resumed", timeout=WAIT_MS)
    assert chain.guard_state()["stopped"] is None
    assert "hang, please" in chain.loop.tail
    assert (watched.loads, watched.streams) == (1, 1)
    page.close()


def test_a_stop_that_cannot_reach_the_robot_says_what_was_done_instead(
    browser: Browser, started: Chain
) -> None:
    """The robot's tunnel is killed; the loop ends, and the guard lets the arm come to rest."""
    watched = Watched(browser, started.page)
    expect(watched.page.locator("#chip-guard")).to_have_text("guard passes", timeout=WAIT_MS)
    started.tunnel.kill()
    watched.page.keyboard.press("Space")
    answer = watched.page.locator("#stop-answer")
    expect(answer).to_contain_text("did not confirm stop", timeout=WAIT_MS)
    expect(answer).to_contain_text("the loop was told to brake the arm and end")
    expect(answer).to_contain_text("use the emergency stop")
    expect(watched.page.locator("#chip-loop")).to_have_text("ended", timeout=WAIT_MS)
    started.wait_rest()
    wait_for(lambda: started.loop.popen.poll() is not None, "the loop ends", 20)
    watched.page.close()
