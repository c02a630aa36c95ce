"""Joining trajectories while the gripper, which the guard does not move, opens."""

from __future__ import annotations

import numpy as np
import pytest

from crane_x7_remote.guard import join
from crane_x7_remote.guard.join import Situation, rest
from crane_x7_remote.inference.hold import Hold
from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.trajectory import flown
from crane_x7_vla_rl.robot import HOME_RAD
from crane_x7_vla_rl.types import JointState, Trajectory

NOW_S = 100.0


def wanted(now_s: float, sequence: int, gripper_rad: float) -> Trajectory:
    """A trajectory that turns the first joint, as the guard reads it: its gripper rests."""
    points = np.tile(HOME_RAD, (10, 1))
    points[:, 0] += np.linspace(0.0, 0.1, 10)
    points[:, 7] = gripper_rad
    times = np.linspace(0.05, 0.45, 10)
    return Trajectory(points, np.zeros((10, 8)), times, now_s - 0.1, sequence, "0a1b2c3d", 0.5)


def joints(gripper_rad: float, gripper_rad_s: float) -> JointState:
    position, velocity = HOME_RAD.copy(), np.zeros(8)
    position[7], velocity[7] = gripper_rad, gripper_rad_s
    return JointState(position, velocity)


@pytest.mark.parametrize("rested_rad", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("measured_rad", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("speed_rad_s", [-8.0, 4.0, 12.0])
def test_the_guards_paths_leave_a_gripper_that_opens_where_it_was(
    rested_rad: float, measured_rad: float, speed_rad_s: float
) -> None:
    """The first path starts from the measured joints, the others continue it; none moves the
    gripper, whose measured speed is none of the guard's paths."""
    limits, measured = Limits(), joints(measured_rad, speed_rad_s)
    running = rest(joints(rested_rad, 0.0).position_rad, NOW_S - 0.02)
    for number in range(12):
        now_s = NOW_S + 0.05 * number
        at = Situation(now_s, running, number > 0, measured, now_s - 0.01, 0.09 if number else 0.2)
        found = join.joined(wanted(now_s, number + 1, rested_rad), at, limits)
        assert not isinstance(found, Hold), found
        path, _ = found
        assert path.position_rad[:, 7] == pytest.approx(rested_rad)
        running = flown(running, path)
