"""The robot's clock, estimated from stamps and arrivals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from crane_x7_remote.rosbridge.clock import CONFIRMATIONS, DRIFT, ClockOffset, Staleness


def test_nothing_is_known_before_the_first_message() -> None:
    offset = ClockOffset()
    assert offset.robot_time(10.0) is None
    assert offset.age_s(5.0, 10.0) == 0.0


@pytest.mark.parametrize("ahead_s", [-3600.0, 0.0, 3600.0, 1.7e9])
def test_the_fastest_message_sets_the_clock_however_far_off_it_is(ahead_s: float) -> None:
    offset, random = ClockOffset(), np.random.default_rng(0)
    for k in range(300):
        sent = 0.033 * k
        offset.observe(sent + ahead_s, sent + 0.02 + random.exponential(0.03))
    now = 0.033 * 300
    known = offset.robot_time(now)
    assert known is not None
    assert known == pytest.approx(now + ahead_s - 0.02, abs=5e-3)


def test_age_counts_from_the_fastest_message() -> None:
    offset = ClockOffset()
    offset.observe(1000.0, 0.0)
    assert offset.age_s(1001.0, 1.0) == pytest.approx(0.0, abs=1e-3)
    assert offset.age_s(1001.0, 1.7) == pytest.approx(0.7, abs=1e-3)


def test_a_slow_message_does_not_move_the_clock() -> None:
    offset = ClockOffset()
    offset.observe(1000.0, 0.0)
    offset.observe(1000.1, 5.1)
    assert offset.age_s(1000.1, 5.1) == pytest.approx(5.0, abs=0.01)


def test_a_robot_clock_that_runs_slow_is_followed() -> None:
    """Without relaxing, every frame would look older and older."""
    offset, worst = ClockOffset(), 0.0
    for k in range(36_000):  # an hour at 10 Hz
        now = 0.1 * k
        stamp = now * (1 - DRIFT / 2)
        offset.observe(stamp, now)
        worst = max(worst, offset.age_s(stamp, now))
    assert worst < 0.01


def test_one_wrong_stamp_ahead_does_not_make_right_ones_old() -> None:
    offset = ClockOffset()
    offset.observe(1000.0, 0.0)
    offset.observe(5000.0, 0.1)
    offset.observe(1000.2, 0.2)
    assert offset.age_s(1000.3, 0.3) < 0.01


def test_a_clock_set_forward_is_believed_once_several_stamps_agree() -> None:
    offset = ClockOffset()
    offset.observe(1000.0, 0.0)
    for k in range(CONFIRMATIONS):
        offset.observe(5000.0 + 0.1 * k, 0.1 * k)
    assert offset.age_s(5000.0 + 0.1 * CONFIRMATIONS, 0.1 * CONFIRMATIONS) < 0.01


def test_a_new_connection_starts_afresh() -> None:
    offset = ClockOffset()
    offset.observe(1000.0, 0.0)
    offset.reset()
    assert offset.robot_time(1.0) is None


def test_steady_old_age_asks_for_a_reconnect_and_a_single_one_does_not() -> None:
    staleness = Staleness(limit_s=0.5, patience_s=5.0)
    assert not any(staleness.observe(2.0 + 0.1 * (k % 2), 0.1 * k) for k in range(45))
    assert not staleness.observe(0.1, 4.6)
    assert not any(staleness.observe(2.0 + 0.1 * (k % 2), 5.0 + 0.1 * k) for k in range(49))
    assert staleness.observe(2.0, 10.1)
    staleness.reset()
    assert not staleness.observe(2.0, 10.2)


def test_everything_late_by_one_amount_asks_for_a_reconnect_at_once_but_not_again_and_again() -> (
    None
):
    """As after a clock was set back by 0.45 s while the link stood still: nothing drains."""
    staleness = Staleness()
    asked = [staleness.observe(0.45, k / 30) for k in range(60)]
    assert asked.index(True) < 30
    assert sum(asked) == 1
    staleness.reset()
    assert not any(staleness.observe(0.45, 2.0 + k / 30) for k in range(100))


@pytest.mark.parametrize(
    "age_s",
    [
        lambda _: 0.2,  # a slow link
        lambda k: max(0.9 - 0.02 * k, 0.0),  # a backlog that drains
        lambda k: 0.3 if k % 6 else 0.1,
    ],
)
def test_what_drains_or_varies_is_waited_for(age_s: Callable[[int], float]) -> None:
    staleness = Staleness()
    assert not any(staleness.observe(age_s(k), k / 30) for k in range(120))


# --- outliers, steps and delays ------------------------------------------------------------------


def clock_of(offset: ClockOffset, now_s: float) -> float:
    """Return how far the estimate lies above our own clock at `now_s`."""
    robot_s = offset.robot_time(now_s)
    assert robot_s is not None
    return robot_s - now_s


def feed(
    offset: ClockOffset,
    seconds: float,
    start_s: float = 0.0,
    *,
    hz: float = 30.0,
    ahead_s: Callable[[float], float] = lambda _: 0.0,
    delay_s: Callable[[float], float] = lambda _: 0.0,
) -> float:
    """Let messages sent at `hz` arrive in order, each late by `delay_s` of its sending time and
    stamped 1000 s ahead of our clock, plus `ahead_s` of it; return the time of the last arrival."""
    arrival_s = start_s
    for k in range(round(seconds * hz)):
        sent_s = start_s + k / hz
        arrival_s = max(arrival_s, sent_s + delay_s(sent_s))
        offset.observe(1000 + sent_s + ahead_s(sent_s), arrival_s)
    return arrival_s


@pytest.mark.parametrize("by_s", [0.06, 0.2, 0.45, 20.0, 3600.0, 1e9, -0.2, -0.45, -20.0, -1e9])
@pytest.mark.parametrize("hz", [5.0, 30.0, 200.0])
def test_one_wrong_stamp_costs_one_message_and_moves_nothing(by_s: float, hz: float) -> None:
    offset = ClockOffset()
    feed(offset, 3, hz=hz)
    trusted = []
    for k in range(round(3 * hz), round(4 * hz)):
        now_s = k / hz
        wrong_s = by_s if k == round(3 * hz) + 1 else 0.0
        trusted.append(offset.observe(1000 + now_s + wrong_s, now_s))
        assert clock_of(offset, now_s) == pytest.approx(1000, abs=2e-3)
    assert trusted.count(False) <= 1
    assert offset.steps == 0


def test_a_wrong_stamp_at_the_very_beginning_is_forgotten() -> None:
    for by_s in (0.45, -0.45, 1e6):
        offset = ClockOffset()
        offset.observe(1000 + by_s, 0.0)
        end_s = feed(offset, 1, 0.03)
        assert clock_of(offset, end_s) == pytest.approx(1000, abs=2e-3)
        assert offset.is_settled


STEPS_S = (0.07, 0.3, 20.0, 3600.0, -0.2, -0.45, -3600.0, -1e9)


@pytest.mark.parametrize(
    ("by_s", "hz"),
    # A clock set back by no more than a period leaves stamps that still increase: see the next one.
    [
        (by_s, hz)
        for by_s in STEPS_S
        for hz in (5.0, 10.0, 30.0, 200.0)
        if by_s > 0 or -by_s > 1 / hz
    ],
)
def test_a_step_of_the_clock_is_followed_within_a_second(by_s: float, hz: float) -> None:
    offset = ClockOffset()
    feed(offset, 3, hz=hz)
    end_s = feed(offset, 1, 3, hz=hz, ahead_s=lambda _: by_s)
    assert clock_of(offset, end_s) == pytest.approx(1000 + by_s, abs=2e-3)
    assert offset.steps == 1
    assert offset.step is not None
    assert offset.step.by_s == pytest.approx(by_s, abs=2e-3)
    assert offset.step.at_s < 4


def test_a_clock_set_back_by_less_than_a_period_looks_like_a_delay() -> None:
    offset = ClockOffset()
    feed(offset, 3, hz=5.0)
    end_s = feed(offset, 1, 3, hz=5.0, ahead_s=lambda _: -0.15)
    assert offset.age_s(1000 + end_s - 0.15, end_s) == pytest.approx(0.15, abs=2e-3)


@pytest.mark.parametrize("by_s", [0.3, 20.0, -0.2, -0.45, -3600.0])
@pytest.mark.parametrize("hz", [30.0, 200.0])
def test_a_step_within_a_stall_of_the_link_is_followed(by_s: float, hz: float) -> None:
    offset = ClockOffset()
    feed(offset, 3, hz=hz)
    end_s = feed(
        offset,
        2,
        3,
        hz=hz,
        ahead_s=lambda sent_s: by_s if sent_s > 3.4 else 0.0,
        delay_s=lambda sent_s: max(0.0, 3.9 - sent_s),
    )
    assert clock_of(offset, end_s) == pytest.approx(1000 + by_s, abs=5e-3)
    assert offset.steps >= 1


def test_stalls_and_the_bursts_behind_them_are_no_steps() -> None:
    random = np.random.default_rng(1)
    starts, ends, now_s = [], [], 1.0
    while now_s < 300:
        starts.append(now_s)
        now_s += random.uniform(0.05, 1.0)
        ends.append(now_s)
        now_s += random.uniform(0.02, 1.0)

    def delay_s(sent_s: float) -> float:
        at = int(np.searchsorted(starts, sent_s)) - 1
        return 0.004 + (max(0.0, ends[at] - sent_s) if at >= 0 else 0.0)

    for hz in (5.0, 30.0, 200.0):
        offset = ClockOffset()
        end_s = feed(offset, 300, hz=hz, delay_s=delay_s)
        assert offset.steps == 0
        assert clock_of(offset, end_s) == pytest.approx(1000 - 0.004, abs=5e-3)


def test_a_backlog_that_drains_slowly_is_no_clock_set_back() -> None:
    offset = ClockOffset()
    drain = 0.5  # a second of messages takes so much longer than the link needs them to
    end_s = feed(offset, 8, delay_s=lambda sent_s: max(0.0, 1.0 - abs(sent_s - 3) * drain))
    assert offset.steps == 0
    assert clock_of(offset, end_s) == pytest.approx(1000, abs=5e-3)


@pytest.mark.parametrize("longer_s", [0.2, 0.3, 0.45, 2.0])
def test_a_route_that_became_longer_makes_frames_as_old_as_they_are(longer_s: float) -> None:
    offset = ClockOffset()
    end_s = feed(offset, 60, delay_s=lambda sent_s: 0.01 if sent_s < 3 else 0.01 + longer_s)
    stamp_s = 1000 + 60 - 1 / 30
    assert offset.steps == 0
    assert offset.age_s(stamp_s, end_s) == pytest.approx(longer_s, abs=0.02)


def test_twenty_seconds_of_silence_change_nothing() -> None:
    offset = ClockOffset()
    feed(offset, 3)
    end_s = feed(offset, 1, 23)
    assert clock_of(offset, end_s) == pytest.approx(1000, abs=5e-3)
    assert offset.steps == 0


@pytest.mark.parametrize("hz", [10.0, 30.0, 200.0])
def test_stamps_that_jitter_by_200_ms_are_no_steps_and_mostly_usable(hz: float) -> None:
    random = np.random.default_rng(2)
    offset, trusted = ClockOffset(), []
    for k in range(round(60 * hz)):
        stamp_s = 1000 + k / hz + random.uniform(-0.1, 0.1)
        trusted.append(offset.observe(stamp_s, k / hz))
    assert offset.steps == 0
    assert trusted.count(False) < 0.15 * len(trusted)


def test_two_publishers_with_two_clocks_are_never_taken_for_a_step() -> None:
    offset = ClockOffset()
    feed(offset, 3)
    for k in range(90):
        offset.observe(1003 + k / 30, 3 + k / 30)
        offset.observe(1003 + k / 30 - 5, 3.01 + k / 30)
        assert clock_of(offset, 3.01 + k / 30) == pytest.approx(1000, abs=5e-3)
    assert offset.steps == 0


def test_a_step_that_another_topic_showed_needs_one_message_to_confirm_it() -> None:
    offset = ClockOffset()
    feed(offset, 10, hz=1.0)
    offset.expect(-0.45, 10.5)
    assert offset.observe(1011 - 0.45, 11.0)
    assert clock_of(offset, 11.0) == pytest.approx(1000 - 0.45, abs=5e-3)
    still = ClockOffset()
    feed(still, 10, hz=1.0)
    still.expect(-0.45, 10.5)
    still.observe(1011, 11.0)
    assert clock_of(still, 11.0) == pytest.approx(1000, abs=5e-3)
