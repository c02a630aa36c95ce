"""The robot's clock, estimated from stamps and arrivals."""

from __future__ import annotations

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
    assert not any(staleness.observe(2.0, 0.1 * k) for k in range(45))
    assert not staleness.observe(0.1, 4.6)
    assert not any(staleness.observe(2.0, 5.0 + 0.1 * k) for k in range(49))
    assert staleness.observe(2.0, 10.1)
    staleness.reset()
    assert not staleness.observe(2.0, 10.2)
