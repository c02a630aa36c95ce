"""Jerk and pauses of an arm, from positions that are known exactly."""

from __future__ import annotations

import numpy as np
import pytest

from crane_x7_remote.demo.motion import PAUSE_S, Motion, motion
from crane_x7_vla_rl.types import Array

TIMES_S = np.arange(0, 10, 1 / 60)


def moved(of: Array, begin_s: float = 0.0, end_s: float = 10.0) -> Motion:
    position = np.zeros((len(TIMES_S), 8))
    position[:, 2] = of
    found = motion(TIMES_S, position, begin_s, end_s)
    assert found is not None
    return found


def test_a_cubic_has_the_jerk_of_its_third_derivative() -> None:
    found = moved(0.01 * TIMES_S**3 + 0.1 * TIMES_S)
    assert found.jerk_rad_s3 == pytest.approx(0.06 / 7**0.5, rel=0.05), "one joint of seven"
    assert (found.pauses, found.paused_s) == (0, 0.0)


def test_stops_are_counted_from_their_length_on() -> None:
    speed = np.where((TIMES_S > 2) & (TIMES_S < 3), 0.0, 0.5)
    speed[(TIMES_S > 5) & (TIMES_S < 5 + PAUSE_S / 2)] = 0.0
    speed[TIMES_S > 8] = 0.0
    found = moved(np.cumsum(speed) / 60)
    assert found.pauses == 2
    assert found.paused_s == pytest.approx(3.0, abs=0.2)
    assert moved(np.cumsum(speed) / 60, 0.0, 7.0).pauses == 1, "only until the end"


def test_a_hand_that_opens_is_no_motion_of_the_arm_and_too_little_gives_nothing() -> None:
    position = np.zeros((len(TIMES_S), 8))
    position[:, 7] = TIMES_S
    found = motion(TIMES_S, position, 0.0, 10.0)
    assert found is not None
    assert found.jerk_rad_s3 == 0
    assert found.pauses == 1
    assert motion(TIMES_S[:1], position[:1], 0.0, 10.0) is None
    assert motion(TIMES_S, position, 9.9, 10.0) is None
