"""How smoothly an arm moved. Times and measured joints of a run → jerk and pauses. Pure.

Legend: K joint states recorded; 7 joints of the arm, rad.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from crane_x7_vla_rl.robot import ARM_DOF
from crane_x7_vla_rl.types import Array

RATE_HZ: Final = 20.0
"""Positions are compared at this rate: at a higher one their noise would be most of the jerk."""
STILL_RAD_S: Final = 0.02
"""An arm whose fastest joint is slower stands still."""
PAUSE_S: Final = 0.3
"""A shorter stop is a change of direction."""


@dataclass(frozen=True)
class Motion:
    """How an arm moved between two moments."""

    jerk_rad_s3: float
    """Root mean square over time and joints of the third derivative of the position."""
    pauses: int
    """Stops of PAUSE_S or longer."""
    paused_s: float
    """All of them together."""


def motion(times_s: Array, position_rad: Array, begin_s: float, end_s: float) -> Motion | None:
    """Return the motion of the arm for times (K,) and positions (K, 8); None for too little."""
    if len(times_s) < 2:
        return None
    at = np.arange(max(begin_s, times_s[0]), min(end_s, times_s[-1]), 1 / RATE_HZ)
    if len(at) < 5:
        return None
    arm = np.stack([np.interp(at, times_s, joint) for joint in position_rad.T[:ARM_DOF]], axis=1)
    speed = np.abs(np.diff(arm, axis=0)).max(axis=1) * RATE_HZ
    lengths_s = [length / RATE_HZ for length in _runs(speed < STILL_RAD_S)]
    long = [length_s for length_s in lengths_s if length_s >= PAUSE_S]
    jerk = np.diff(arm, n=3, axis=0) * RATE_HZ**3
    return Motion(float(np.sqrt(np.mean(jerk**2))), len(long), float(sum(long)))


def _runs(still: Array) -> list[int]:
    """Return the lengths of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], still, [False]]).astype(int)))
    return [int(length) for length in edges[1::2] - edges[::2]]
