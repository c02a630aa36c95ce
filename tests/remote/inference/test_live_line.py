"""The line that shows a person how the loop does."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from crane_x7_remote.inference.hold import HoldReason
from crane_x7_remote.inference.live_line import line, live_line
from crane_x7_remote.inference.metrics import LoopMetrics


def driven() -> LoopMetrics:
    metrics = LoopMetrics("0a1b2c3d", 10.0)
    metrics.state, metrics.instruction = "driving", "pick up the\x1b[2J red cube"
    for tick in range(11):
        metrics.tick(tick / 10)
        metrics.trajectory(tick / 10)
        metrics.latency.add(0.020)
    return metrics


def test_it_says_state_rate_latency_and_task() -> None:
    metrics = driven()
    said = line(metrics)
    assert said.startswith("driving · 10.0 of 10 Hz · latency 20 ms, p99 20 ms · 11 trajectories")
    assert said.endswith(r"task: pick up the\x1b[2J red cube")
    metrics.state = HoldReason.NO_NEW_FRAME
    assert line(metrics).startswith(f"holds: {HoldReason.NO_NEW_FRAME} · ")


@pytest.mark.parametrize("looked_at", [True, False])
def test_it_is_drawn_where_a_person_looks_and_gone_at_the_end(
    looked_at: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: looked_at)
    with live_line(driven(), period_s=0.01):
        assert ("live line" in {thread.name for thread in threading.enumerate()}) == looked_at
        time.sleep(0.2)
    said = capsys.readouterr().err
    assert ("driving · 10.0 of 10 Hz" in said) == looked_at
    assert said.endswith("\x1b[2K") or not looked_at
    assert "live line" not in {thread.name for thread in threading.enumerate()}
