"""`--dashboard` as a user starts it: the page is a child process of the loop, and only that."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dashboard_rig import post, receive, request, stream
from driving_rig import CLEAN, TOKEN, Driving
from loop_rig import wait_until
from processes import is_alive


@pytest.fixture
def driving(tmp_path: Path) -> Iterator[Driving]:
    with Driving(tmp_path) as driving:
        yield driving


def is_hanging(state: dict[str, Any]) -> bool:
    return state["loop"]["hold"] in ("policy timeout", "policy busy")


def test_a_loops_page_shows_stops_and_resumes_it_even_while_its_policy_hangs(
    driving: Driving,
) -> None:
    driving.wait_driving()
    with stream(driving.page) as link:
        wait_until(lambda: receive(link).head["state"].get("guard"), 10, "the guard's state")
        states = (receive(link).head["state"] for _ in range(200))
        # A loop on a busy machine may hold for a moment; then there is no path.
        state = next(each for each in states if each["path"]["points"])
        assert state["loop"]["policy"] == "color-servo"
        assert state["loop"]["rate_hz"] > 0
        assert state["path"]["gripper"]
        assert {stage["name"] for stage in state["stages"]} >= {"policy", "decode"}
    told = post(driving.page, "/instruction", {"text": "hang from now on"})
    assert told.json == {"ok": True, "text": "accepted: hang from now on"}
    with stream(driving.page) as link:
        wait_until(lambda: is_hanging(receive(link).head["state"]), 20, "the policy hangs")
    stopped = post(driving.page, "/stop", {})
    assert stopped.json["ok"], stopped.json
    assert driving.guard.state()["stopped"] is not None
    assert post(driving.page, "/resume", {}).json["ok"]
    assert driving.guard.state()["stopped"] is None
    assert driving.loop.poll() is None


def test_the_guards_token_reaches_the_page_and_leaves_it_nowhere(driving: Driving) -> None:
    """The child gets it by its environment, and its stop would be refused without it."""
    driving.wait_driving()
    assert TOKEN not in " ".join(driving.child.cmdline())
    for path in ("/", "/app.js", "/metrics"):
        assert TOKEN.encode() not in request(driving.page, "GET", path).body
    with stream(driving.page) as link:
        assert TOKEN not in json.dumps(receive(link).head)
    assert post(driving.page, "/resume", {}).json["ok"]
    assert TOKEN not in driving.log.read_text()


def test_the_loop_drives_on_when_its_page_is_killed(driving: Driving) -> None:
    driving.wait_driving()
    driving.child.kill()
    wait_until(lambda: "the loop continues without it" in driving.log.read_text(), 10, "said once")
    driving.wait_driving()
    assert driving.log.read_text().count("the loop continues without it") == 1
    driving.loop.terminate()
    assert driving.loop.wait(20) == 0


def test_the_page_says_that_the_loop_has_ended_and_ends_after_it(driving: Driving) -> None:
    driving.wait_driving()
    child = driving.child.pid
    with stream(driving.page) as link:
        receive(link)
        driving.loop.terminate()
        wait_until(
            lambda: receive(link).head["state"]["loop"]["state"] == "ended", 10, "the page says so"
        )
    assert driving.loop.wait(20) == 0
    wait_until(lambda: not is_alive(child), 30, "the page's process ends")


def test_the_page_ends_when_its_loop_is_killed(driving: Driving) -> None:
    driving.wait_driving()
    child = driving.child.pid
    driving.loop.kill()
    wait_until(lambda: not is_alive(child), 30, "the page's process ends")


def test_without_a_guard_the_stop_ends_the_loop_and_says_so(tmp_path: Path) -> None:
    with Driving(tmp_path, guarded=False) as driving:
        driving.wait_driving()
        with stream(driving.page) as link:
            wait_until(
                lambda: receive(link).head["state"].get("stop_means") == "loop", 10, "said before"
            )
        answer = post(driving.page, "/stop", {})
        assert (answer.status, answer.json["ok"]) == (502, False)
        assert answer.json["text"].startswith("no guard: the loop was told to brake the arm")
        assert "emergency stop" in answer.json["text"]
        assert driving.loop.wait(20) == 0
        assert "braking the arm to rest" in driving.log.read_text()


def command(*flags: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "crane_x7_remote", "dashboard", *flags],
        capture_output=True, text=True, timeout=60, env=CLEAN | environ, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = command("--dashboard-listen", place)
    assert ended.returncode == 17
    assert f"cannot listen on {place} (DASHBOARD_LISTEN): Address already in use" in ended.stderr


@pytest.mark.parametrize("place", ["0.0.0.0:8686", "100.64.0.7:8686", "[::]:8686"])
def test_an_address_of_others_needs_a_token(place: str) -> None:
    ended = command("--dashboard-listen", place)
    assert ended.returncode == 3
    assert "set DASHBOARD_TOKEN" in ended.stderr


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--run", "/nowhere/at/all"), 17, "there is no such folder"),
        (("--from-feed",), 17, "standard input is not a loop's feed"),
        (("--dashboard-listen", "8686"), 3, "expected address:port"),
        (("--camera-pose", "/nowhere.yaml", "--dashboard-listen", "127.0.0.1:0"), 3, "CAMERA_POSE"),
    ],
)
def test_a_wrong_start_is_explained(flags: tuple[str, ...], code: int, words: str) -> None:
    ended = command(*flags, DASHBOARD_LISTEN="127.0.0.1:0")
    assert ended.returncode == code
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_terminal_never_gets_control_characters_of_an_instruction(driving: Driving) -> None:
    driving.wait_driving()
    post(driving.page, "/instruction", {"text": "\x1b]0;owned\x07\x1b[31mred"})
    post(driving.page, "/record", {"word": "\x1b[31m"})
    request(driving.page, "GET", "/%1b[31m")
    time.sleep(1)
    assert "\x1b" not in driving.log.read_text()


def test_the_memory_of_an_open_page_stays_flat(driving: Driving) -> None:
    """A shortened hour: images and ticks at the loop's rate, a viewer that reads everything."""
    watch_memory(driving, seconds=12.0, settle_s=5.0, allowed_mib=12.0)


@pytest.mark.slow
@pytest.mark.timeout(4000)
def test_the_memory_of_a_page_that_is_open_for_an_hour_stays_flat(driving: Driving) -> None:
    watch_memory(driving, seconds=3600.0, settle_s=60.0, allowed_mib=12.0)


def watch_memory(driving: Driving, seconds: float, settle_s: float, allowed_mib: float) -> None:
    driving.wait_driving()
    child, messages, begun_mib = driving.child, 0, 0.0
    started_s = time.monotonic()
    with stream(driving.page) as link:
        while (passed_s := time.monotonic() - started_s) < seconds:
            messages += bool(receive(link).image)
            if not begun_mib and passed_s > settle_s:
                begun_mib = child.memory_info().rss / 2**20
    grown_mib = child.memory_info().rss / 2**20 - begun_mib
    print(f"{seconds:g} s: {messages} images, {begun_mib:.1f} MiB after {settle_s:g} s, then"
          f" {grown_mib:+.1f} MiB")  # fmt: skip
    assert messages > seconds, "at least one image per second"
    assert grown_mib < allowed_mib, f"{begun_mib:.0f} MiB grew by {grown_mib:.1f} MiB"
