"""The way home and after a leader: slow, within limits, and never in a hurry to catch up."""

from __future__ import annotations

import numpy as np
import pytest

from crane_x7_remote.trial.moves import (
    FOLLOW_S,
    LOST_RAD,
    SLOW_RAD_S,
    STEP_S,
    HomeMove,
    LeaderMove,
    NothingToFollowError,
)
from crane_x7_vla_rl.robot import ARM_DOF, HOME_RAD, LOWER_RAD, UPPER_RAD
from crane_x7_vla_rl.types import Array

FAR = HOME_RAD + np.array([1.2, -0.5, 0.3, 0.4, -0.8, 0.2, -1.0, 0.3])
OPEN = np.append(HOME_RAD[:ARM_DOF], 0.6)


def walk(move: HomeMove, start: Array, seconds: float, tick_s: float = 0.1) -> Array:
    """An arm that is always where it should be; (T, 8)."""
    at, path = start.copy(), [start.copy()]
    for tick in range(round(seconds / tick_s)):
        chunk = move.chunk(at, 100 + tick * tick_s, 0.5)
        at = chunk.position_rad[0].copy()
        path.append(at.copy())
    return np.array(path)


def test_the_arm_goes_home_slowly_and_then_opens_the_gripper() -> None:
    move = HomeMove(OPEN, keep_gripper_rad=0.1)
    path = walk(move, FAR, 8)
    speed = np.abs(np.diff(path[1:], axis=0)).max(axis=1) / STEP_S
    assert speed.max() <= SLOW_RAD_S * 1.01
    assert np.allclose(path[-1], OPEN, atol=0.01)
    away = ~np.array([move.is_there(each) for each in path[1:-1]])
    assert np.allclose(path[1:-1][away][:, ARM_DOF], 0.1)  # it drops nothing on the way


def test_a_chunk_covers_the_time_until_the_next_ones() -> None:
    chunk = HomeMove(OPEN, None).chunk(FAR, 0.0, 2.0)
    assert len(chunk.position_rad) * chunk.period_s >= 2.0


def test_an_arm_that_was_held_back_does_not_catch_up_in_a_hurry() -> None:
    move = HomeMove(OPEN, 0.1)
    move.chunk(FAR, 0.0, 0.5)
    late = move.chunk(FAR, 5.0, 0.5)  # held for 5 s, where it began
    assert np.abs(late.position_rad[0] - FAR)[:ARM_DOF].max() < LOST_RAD
    assert np.abs(late.position_rad[0] - FAR)[:ARM_DOF].max() <= SLOW_RAD_S * STEP_S


def test_the_gripper_can_stay_as_it_is() -> None:
    keep = np.append(HOME_RAD[:ARM_DOF], np.nan)
    path = walk(HomeMove(keep, None), FAR, 8)
    assert np.allclose(path[1:, ARM_DOF], FAR[ARM_DOF])
    assert np.isfinite(path).all()


def test_a_joint_that_is_measured_outside_its_limit_starts_inside() -> None:
    outside = HOME_RAD.copy()
    outside[3] = UPPER_RAD[3] + 0.05
    chunk = HomeMove(OPEN, None).chunk(outside, 0.0, 0.5)
    assert (chunk.position_rad <= UPPER_RAD).all()
    assert (chunk.position_rad >= LOWER_RAD).all()


class Leader:
    def __init__(self, at: Array) -> None:
        self.at: Array | None = at
        self.age_s = 0.01

    def pose(self) -> tuple[Array, float] | None:
        return None if self.at is None else (self.at, self.age_s)


def test_the_follower_approaches_slowly_and_then_follows_at_once() -> None:
    leader = Leader(FAR)
    move = LeaderMove(leader)
    at, ticks = HOME_RAD.copy(), 0
    while not move.is_aligned:
        before = at
        at = move.chunk(at, ticks * 0.1, 0.5).position_rad[0]
        assert np.abs(at - before).max() <= SLOW_RAD_S * 0.1 + 1e-9 or move.is_aligned
        ticks += 1
        assert ticks < 100
    leader.at = FAR + 0.3  # a hand moves it
    chunk = move.chunk(at, ticks * 0.1, 0.5)
    assert np.allclose(chunk.position_rad, leader.at)
    assert chunk.period_s == FOLLOW_S


@pytest.mark.parametrize("held", ["not asked", "not sent"])
def test_a_follower_that_was_held_approaches_the_leader_slowly_again(held: str) -> None:
    leader = Leader(HOME_RAD.copy())
    move = LeaderMove(leader)
    for tick in range(5):
        move.chunk(HOME_RAD, 10 + 0.1 * tick, 0.5)
    assert move.is_aligned
    joint = np.eye(8)[0]
    for tick in range(1, 31):  # the arm stays where it is for 3 s, and a hand moves the leader
        leader.at = HOME_RAD + 0.8 * joint * tick / 30
        if held == "not sent":
            move.chunk(HOME_RAD, 10.4 + 0.1 * tick, 0.5)
    target = move.chunk(HOME_RAD, 13.5, 0.5).position_rad[0]
    assert not move.is_aligned
    at_most_rad = 0.24 if held == "not sent" else 0.16
    assert np.abs(target - HOME_RAD)[:ARM_DOF].max() <= at_most_rad


def test_a_hand_that_moves_the_leader_fast_is_followed_at_once() -> None:
    """The follower is far behind the newest target, but where it was sent a moment before."""
    leader = Leader(HOME_RAD.copy())
    move = LeaderMove(leader)
    path = [HOME_RAD.copy()] * 5
    for tick in range(30):
        leader.at = HOME_RAD + np.eye(8)[0] * np.sin(0.25 * tick)  # at most 2.5 rad/s
        path.append(leader.at)
        target = move.chunk(path[-5], 10 + 0.1 * tick, 0.5).position_rad[0]
        assert np.allclose(target, leader.at)


@pytest.mark.parametrize("fault", ["none", "old", "nan"])
def test_a_leader_that_is_lost_is_not_followed_and_approached_again(fault: str) -> None:
    leader = Leader(HOME_RAD.copy())
    move = LeaderMove(leader)
    move.chunk(HOME_RAD, 0.0, 0.5)
    assert move.is_aligned
    leader.at = {"none": None, "old": FAR, "nan": np.full(8, np.nan)}[fault]
    leader.age_s = 0.8 if fault == "old" else 0.01
    with pytest.raises(NothingToFollowError, match="leader"):
        move.chunk(HOME_RAD, 0.1, 0.5)
    leader.at, leader.age_s = FAR, 0.01
    chunk = move.chunk(HOME_RAD, 0.2, 0.5)
    assert not move.is_aligned
    assert np.abs(chunk.position_rad[0] - HOME_RAD).max() <= SLOW_RAD_S * 2 * FOLLOW_S
