"""Which frame rate is requested, with a model of a link of limited capacity."""

from __future__ import annotations

from itertools import pairwise

import pytest

from crane_x7_remote.rosbridge.clock import Staleness
from crane_x7_remote.rosbridge.throttle import LEVELS_MS, SETTLE_S, Throttle

PERIOD_S = 1 / 30


def feed(throttle: Throttle, age_s: float, seconds: float, start_s: float = 0.0) -> float:
    """Let frames of one age arrive at 30 Hz; return the time after them."""
    for k in range(round(seconds / PERIOD_S)):
        throttle.observe(age_s, start_s + k * PERIOD_S)
    return start_s + seconds


class Link:
    """A link that takes `capacity_hz` frames and queues what is too much, without limit."""

    def __init__(self, capacity_hz: float) -> None:
        self.capacity_hz = capacity_hz
        self._free_s = 0.0
        self._last_s = -1.0

    def send(self, now_s: float, throttle_ms: int) -> float | None:
        """Return when the frame of `now_s` arrives; None where the server drops it."""
        if (now_s - self._last_s) * 1e3 < throttle_ms - 1e-6:
            return None
        self._last_s = now_s
        self._free_s = max(self._free_s, now_s) + 1 / self.capacity_hz
        return self._free_s

    def reconnect(self, now_s: float) -> None:
        """Start over: the server drops what waited."""
        self._free_s = now_s


def run(throttle: Throttle, link: Link, seconds: float) -> list[tuple[float, float]]:
    """Return (arrival, age) of every frame; as in the client, a steady backlog ends the link."""
    seen: list[tuple[float, float]] = []
    on_their_way: list[tuple[float, float]] = []
    staleness = Staleness()
    for k in range(round(seconds / PERIOD_S)):
        now = k * PERIOD_S
        arrival = link.send(now, throttle.rate_ms)
        if arrival is not None:
            on_their_way.append((arrival, arrival - now))
        while on_their_way and on_their_way[0][0] <= now:
            arrival, age = on_their_way.pop(0)
            throttle.observe(age, arrival)
            seen.append((arrival, age))
            if staleness.observe(age, arrival):
                on_their_way.clear()
                link.reconnect(arrival)
                throttle.reset_link()
                staleness.reset()
    return seen


def test_prompt_frames_leave_the_full_rate() -> None:
    throttle = Throttle()
    feed(throttle, 0.005, 60)
    assert throttle.rate_ms == 0


def test_a_single_late_frame_changes_nothing() -> None:
    throttle = Throttle()
    now = feed(throttle, 0.005, 2)
    assert not throttle.observe(3.0, now)
    assert throttle.rate_ms == 0


def test_late_frames_ask_for_fewer_one_level_at_a_time() -> None:
    throttle, asked = Throttle(), []
    for k in range(round(20 / PERIOD_S)):
        if throttle.observe(0.5, k * PERIOD_S):
            asked.append((k * PERIOD_S, throttle.rate_ms))
    assert [rate for _, rate in asked] == list(LEVELS_MS[1:])
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(asked)]
    assert min(gaps) >= SETTLE_S


@pytest.mark.parametrize("capacity_hz", [12.0, 7.0, 4.0])
def test_a_link_too_slow_for_the_camera_ends_with_fresh_frames(capacity_hz: float) -> None:
    throttle, link = Throttle(), Link(capacity_hz)
    ages = [age for arrival, age in run(throttle, link, 40) if arrival > 25]
    late = sum(age > 0.5 for age in ages) / len(ages)
    assert late < 0.15, f"{late:.0%} of the frames were late, throttle {throttle.rate_ms} ms"


def test_a_link_that_recovers_gets_the_full_rate_back() -> None:
    throttle = Throttle()
    now = feed(throttle, 0.5, 10)
    assert throttle.rate_ms > 0
    feed(throttle, 0.005, 120, now)
    assert throttle.rate_ms == 0


def test_each_failed_trial_waits_longer_for_the_next() -> None:
    throttle, link = Throttle(), Link(20.0)
    trials = []
    for k in range(round(600 / PERIOD_S)):
        now = k * PERIOD_S
        before = throttle.rate_ms
        arrival = link.send(now, before)
        if arrival is not None:
            throttle.observe(arrival - now, now)
        if throttle.rate_ms == 0 < before:
            trials.append(now)
    gaps = [later - earlier for earlier, later in pairwise(trials)]
    assert len(gaps) >= 2
    assert gaps == sorted(gaps)
    assert gaps[-1] > 1.5 * gaps[0]


def test_a_new_link_keeps_the_level_and_forgets_the_frames() -> None:
    throttle = Throttle()
    feed(throttle, 0.5, 2)
    level = throttle.rate_ms
    throttle.reset_link()
    assert level > 0
    assert throttle.rate_ms == level
