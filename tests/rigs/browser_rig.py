"""The dashboard's page in headless Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, WebSocket, expect, sync_playwright

WAIT_MS = 30_000
"""A busy machine draws slowly."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser of this machine; scripts/setup-browser installs it."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    assert program is not None, "no Chromium on this machine; run scripts/setup-browser"
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=program, args=arguments)
        yield launched
        launched.close()


def opened(browser: Browser, port: int, width: int = 1280, height: int = 860) -> Page:
    """Open the page; a script's error or a refused resource fails the test."""
    page = browser.new_page(viewport={"width": width, "height": height})
    load(page, port)
    return page


def load(page: Page, port: int) -> None:
    """Open the dashboard at `port` in `page`, and wait for its first values."""
    page.set_default_timeout(WAIT_MS)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if "Policy" in line.text else None)
    page.goto(f"http://127.0.0.1:{port}/")
    expect(page.locator("body")).not_to_have_attribute("data-mode", "waiting", timeout=WAIT_MS)
    assert faults == []


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


class Watched:
    """A page that is open, and what came to it; it is never loaded again."""

    def __init__(self, browser: Browser, port: int, width: int = 1280, height: int = 860) -> None:
        self.streams = self.images = self.loads = 0
        """WebSockets that were opened, images that came, loads of the page."""
        self.page = browser.new_page(viewport={"width": width, "height": height})
        self.page.on("websocket", self._count)
        self.page.on("load", lambda _: self._loaded())
        load(self.page, port)

    def _loaded(self) -> None:
        self.loads += 1

    def _count(self, socket: WebSocket) -> None:
        self.streams += 1
        socket.on("framereceived", self._received)

    def _received(self, message: str | bytes) -> None:
        assert isinstance(message, bytes)
        self.images += len(message) > 4 + int.from_bytes(message[:4], "big")

    def wait_images(self, count: int = 5, timeout_s: float = 30.0) -> None:
        """Wait for `count` further images."""
        wanted = self.images + count
        for _ in range(round(timeout_s / 0.1)):
            if self.images >= wanted:
                return
            self.page.wait_for_timeout(100)  # runs Playwright's events
        raise AssertionError(f"{self.images} images, wanted {wanted} within {timeout_s} s")
