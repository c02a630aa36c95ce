"""Streams of different rates on one grid of frames. Time stamps → indices and targets; pure.

N messages of a stream, T frames of an episode, 8 joints; times in s on one clock, positions in rad.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Command:
    """One trajectory as it was published."""

    time_s: float
    """Start of its time."""
    joints: tuple[int, ...]
    """Indices of the joints that it moves, out of 8."""
    due_s: Array
    """(P,) when each point is due, counted from `time_s`, increasing."""
    position_rad: Array
    """(P, len(joints))."""


def grid(start_s: float, end_s: float, fps: float) -> Array:
    """Return (T,) frame times from `start_s` to at most `end_s`; empty if `end_s` is earlier."""
    if end_s < start_s:
        return np.empty(0)
    return start_s + np.arange(int((end_s - start_s) * fps + 1e-6) + 1) / fps


def nearest(stamps_s: Array, times_s: Array) -> Indices:
    """Return (T,) index of the message nearest to each time; `stamps_s` (N,) increases, N ≥ 1."""
    after = np.clip(np.searchsorted(stamps_s, times_s), 1, max(len(stamps_s) - 1, 1))
    after = np.minimum(after, len(stamps_s) - 1)
    before = np.maximum(after - 1, 0)
    closer = times_s - stamps_s[before] <= stamps_s[after] - times_s
    return np.asarray(np.where(closer, before, after), dtype=np.int64)


def commanded(
    commands: Sequence[Command], times_s: Array, measured: Array, joints_s: Array, joints: Array
) -> Array:
    """Return (T, 8): the newest command's target at each time.

    `measured` (T, 8) is used for joints that it does not move and before the first command. A
    controller starts at the arm's position, so until a command's first point the target moves to
    that point from the joints measured (`joints_s` (N,), `joints` (N, 8)) when the command arrived;
    after its last point the target stays. `commands` are in the order of their times.
    """
    targets = measured.copy()
    newest = np.searchsorted([command.time_s for command in commands], times_s, "right") - 1
    for row, index in enumerate(newest):
        if index < 0:
            continue
        command = commands[index]
        columns = list(command.joints)
        due, position = command.due_s, command.position_rad
        if not len(due) or due[0] > 0:
            begin = joints[nearest(joints_s, np.array([command.time_s]))[0]][columns]
            due, position = np.r_[0.0, due], np.vstack([begin, position])
        elapsed = times_s[row] - command.time_s
        targets[row, columns] = [
            np.interp(elapsed, due, position[:, column]) for column in range(len(columns))
        ]
    return targets
