"""Slow moves that a trial makes itself: to the home pose, and after a leader arm.

Measured joints and times → the next targets as a chunk. Pure. The loop treats a chunk like any
policy's, so that every check of it applies.

Legend: N steps; 8 joints in the order of `robot.JOINT_NAMES`, rad.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final, Protocol

import numpy as np

from crane_x7_remote.inference.limits import MARGIN_RAD
from crane_x7_vla_rl.robot import ARM_DOF, LOWER_RAD, UPPER_RAD
from crane_x7_vla_rl.types import ActionChunk, Array

SLOW_RAD_S: Final = 0.4
"""Fastest joint of a move that nobody's hand leads."""
STEP_S: Final = 0.1
"""Time between two targets of a chunk."""
THERE_RAD: Final = 0.04
"""Every arm joint closer than this to home: the arm is there."""
LOST_RAD: Final = 0.2
"""An arm further than this from where the move should be starts it again from where it is."""
FOLLOW_S: Final = 0.2
"""A leader's pose is due this long after the frame: longer is smoother and further behind."""
ALIGNED_RAD: Final = 0.05
"""The follower is at the leader's pose; from here it follows without the slow approach."""
LEADER_AGE_S: Final = 0.5
"""An older pose of the leader is not followed."""
TRAIL_S: Final = 0.8
"""A follower that follows was sent within this time to where it is now, however fast the leader
moves."""


class NothingToFollowError(Exception):
    """There is no target now; the loop holds."""


class Move(Protocol):
    """Gives the targets for one frame."""

    def chunk(self, measured: Array, at_s: float, covers_s: float) -> ActionChunk:
        """Return targets from `at_s`, the frame's time, for at least `covers_s`.

        `measured` is (8,). Raises NothingToFollowError.
        """
        ...


class HomeMove:
    """From the measured pose to another one, slowly, and staying there."""

    def __init__(self, home: Array, keep_gripper_rad: float | None) -> None:
        """`home` is (8,); the gripper gets its target there when the arm has arrived, and
        `keep_gripper_rad` until then, so that it drops nothing on the way. None: as measured.
        A gripper of NaN in `home` stays as it is."""
        self._home = home.copy()
        self._keep_rad = keep_gripper_rad
        self._from: Array | None = None
        self._since_s = self._takes_s = 0.0
        self._opens_from: float | None = None
        """When the arm had arrived and the gripper began to move."""

    def chunk(self, measured: Array, at_s: float, covers_s: float) -> ActionChunk:
        """See Move."""
        if self._keep_rad is None:
            self._keep_rad = float(_within(measured)[ARM_DOF])
        if self._from is None or self._is_lost(measured, at_s):
            self._begin(measured, at_s)
        if self._opens_from is None and self.is_there(measured):
            self._opens_from = at_s
        steps = math.ceil(covers_s / STEP_S) + 1
        times_s = at_s + STEP_S * np.arange(1, steps + 1)
        return ActionChunk(np.array([self._at(time_s) for time_s in times_s]), STEP_S)

    def is_there(self, measured: Array) -> bool:
        """Whether every arm joint is at home; the gripper may hold something."""
        return bool(np.abs(measured - self._home)[:ARM_DOF].max() < THERE_RAD)

    def _begin(self, measured: Array, at_s: float) -> None:
        self._from, self._since_s = _within(measured), at_s
        furthest_rad = float(np.abs(self._home - measured)[:ARM_DOF].max())
        # The fastest moment of a cosine ramp is π/2 times its mean.
        self._takes_s = max(furthest_rad * math.pi / 2 / SLOW_RAD_S, STEP_S)

    def _is_lost(self, measured: Array, at_s: float) -> bool:
        """The loop may have held for a while: never catch up in a hurry."""
        return bool(np.abs(self._at(at_s) - measured)[:ARM_DOF].max() > LOST_RAD)

    def _at(self, time_s: float) -> Array:
        assert self._from is not None
        share = min(max((time_s - self._since_s) / self._takes_s, 0.0), 1.0)
        eased = (1 - math.cos(math.pi * share)) / 2
        target = self._from + eased * (self._home - self._from)  # (8,), the gripper as below
        target[ARM_DOF] = self._gripper_at(time_s)
        return target

    def _gripper_at(self, time_s: float) -> float:
        assert self._keep_rad is not None
        wanted = float(self._home[ARM_DOF])
        if self._opens_from is None or math.isnan(wanted):
            return self._keep_rad
        reach_rad = SLOW_RAD_S * max(time_s - self._opens_from, 0.0)
        return self._keep_rad + float(np.clip(wanted - self._keep_rad, -reach_rad, reach_rad))


class LeaderPose(Protocol):
    """The leader arm, as far as a move needs it."""

    def pose(self) -> tuple[Array, float] | None:
        """Return (8,) joints and their age in s; None before the first."""
        ...


class LeaderMove:
    """After a leader arm: slowly to its pose, then as fast as it moves, within all limits."""

    def __init__(self, leader: LeaderPose) -> None:
        self._leader = leader
        self._at: Array | None = None
        """The last target."""
        self._at_s = 0.0
        self._trail: deque[tuple[float, Array]] = deque()
        """The targets of the last TRAIL_S, each with the time of its frame; before it is aligned,
        the last one."""
        self.is_aligned = False

    def chunk(self, measured: Array, at_s: float, covers_s: float) -> ActionChunk:
        """See Move; one target, as nobody knows where a hand goes next."""
        del covers_s
        found = self._leader.pose()
        if found is None or found[1] > LEADER_AGE_S or not np.isfinite(found[0]).all():
            self._at, self.is_aligned = None, False
            raise NothingToFollowError(_why(found))
        wanted = found[0]
        if self._at is None or self._is_lost(measured, at_s):
            self._at, self._at_s, self.is_aligned = _within(measured), at_s, False
        if np.abs(wanted - self._at)[:ARM_DOF].max() < ALIGNED_RAD:
            self.is_aligned = True
        if self.is_aligned:
            self._at = wanted.copy()
        else:
            reach_rad = SLOW_RAD_S * min(max(at_s - self._at_s, 0.0), 2 * FOLLOW_S)
            self._at = self._at + np.clip(wanted - self._at, -reach_rad, reach_rad)
        self._at_s = at_s
        if not self.is_aligned:
            self._trail.clear()
        self._trail.append((at_s, self._at.copy()))
        return ActionChunk(self._at[None].copy(), FOLLOW_S)

    def _is_lost(self, measured: Array, at_s: float) -> bool:
        """Whether the loop has held, or the arm has not followed: never catch up in a hurry."""
        if not 0 <= at_s - self._at_s <= LEADER_AGE_S:
            return True
        while self._trail and at_s - self._trail[0][0] > TRAIL_S:
            self._trail.popleft()
        trail = np.array([target for _, target in self._trail])
        return bool(np.abs(trail - measured)[:, :ARM_DOF].max(axis=1).min() > LOST_RAD)


def _within(measured: Array) -> Array:
    """Return a copy inside the joint limits; a measured joint may be a little outside."""
    return np.clip(measured, LOWER_RAD + MARGIN_RAD, UPPER_RAD - MARGIN_RAD)


def _why(found: tuple[Array, float] | None) -> str:
    if found is None:
        return "no joint state of the leader arm yet"
    if found[1] > LEADER_AGE_S:
        return f"the leader's joint state is {found[1]:.2f} s old, limit {LEADER_AGE_S:g} s"
    return "the leader's joints are not finite"
