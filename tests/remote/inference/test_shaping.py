"""The planner's paths on a link that loses and delays, as the arm's controller executes them."""

from __future__ import annotations

import numpy as np
import pytest

from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.link.peers import Peers
from crane_x7_remote.inference.shaping import Moment, Shaped, TrajectoryPlanner
from crane_x7_remote.rosbridge.messages import StampedJoints, to_ros, trajectory
from crane_x7_remote.sim_robot.controller import TrajectoryController, TrajectoryRefused
from crane_x7_vla_rl.robot import ARM_JOINT_NAMES, HOME_RAD
from crane_x7_vla_rl.types import ActionChunk, JointState, Trajectory

ROBOT_CLOCK_S = 1_700_000_000.0
"""The robot's clock minus ours."""
UPDATE_S = 0.005
SESSION = "0a1b2c3d"


class Link:
    """A planner and the controller that gets its paths; all times are on our clock."""

    def __init__(self, validity_s: float = 0.5, sag_rad: float = 0.0) -> None:
        self.peers = Peers(SESSION)
        self.peers.link_came_up(0.0)
        self.planner = TrajectoryPlanner(SESSION, validity_s, Limits(), self.peers)
        self.controller = TrajectoryController(HOME_RAD[:7], ROBOT_CLOCK_S)
        self._sag_rad = sag_rad

    def joints(self, at_s: float) -> StampedJoints:
        before = self.controller.update(ROBOT_CLOCK_S + at_s - UPDATE_S).copy()
        now = self.controller.update(ROBOT_CLOCK_S + at_s)
        position, velocity = HOME_RAD.copy(), np.zeros(8)
        position[:7], velocity[:7] = now - self._sag_rad, (now - before) / UPDATE_S
        return StampedJoints(JointState(position, velocity), ROBOT_CLOCK_S + at_s, at_s)

    def moment(self, at_s: float, lead_s: float = 0.095, is_guarded: bool = False) -> Moment:
        return Moment(at_s, ROBOT_CLOCK_S + at_s, 0.03, lead_s, is_guarded)

    def shape(
        self, at_s: float, target_rad: float, lead_s: float = 0.095, is_guarded: bool = False
    ) -> Shaped | Hold:
        """Plan a path that takes the first joint to the home pose plus `target_rad`."""
        targets = np.tile(HOME_RAD, (5, 1))
        targets[:, 0] += target_rad
        return self.planner.shape(
            ActionChunk(targets, 0.1),
            ROBOT_CLOCK_S + at_s - 0.03,
            self.joints(at_s),
            self.moment(at_s, lead_s, is_guarded),
        )

    def send(self, shaped: Shaped | Hold, at_s: float, arrives_s: float) -> bool:
        """Send a path, deliver it, and hear its echo; whether the controller accepted it."""
        assert isinstance(shaped, Shaped), shaped
        sequence = shaped.trajectory.sequence
        self.peers.published(sequence, at_s, shaped.lead_s, shaped.expires_s)
        self.planner.sent(shaped)
        is_accepted = self.deliver(shaped.trajectory, arrives_s)
        self.peers.heard(SESSION, sequence, arrives_s + 0.015)
        return is_accepted

    def deliver(self, path: Trajectory, arrives_s: float) -> bool:
        try:
            self.controller.accept(
                trajectory(to_ros(path, ARM_JOINT_NAMES)), ROBOT_CLOCK_S + arrives_s
            )
        except TrajectoryRefused:
            return False
        return True

    def assert_no_step(self, until_s: float) -> None:
        self.controller.update(ROBOT_CLOCK_S + until_s)
        report = self.controller.report
        assert report.steps == 0, report
        assert report.velocity_violations == 0, report
        assert report.acceleration_violations == 0, report


def _end_s(path: Trajectory) -> float:
    """Return when a path ends, on our clock."""
    return path.stamp_s + float(path.time_from_start_s[-1]) - ROBOT_CLOCK_S


@pytest.mark.parametrize("lead_s", [0.095, 0.25])
def test_a_path_that_had_ended_when_it_arrived_is_lost(lead_s: float) -> None:
    """Its controller refuses it long before its validity is over, and its echo comes all the same:
    the next path begins where the arm is."""
    link = Link(validity_s=1.25)
    assert link.send(link.shape(10.0, 0.02), 10.0, 10.02)
    late = link.shape(11.0, 0.12)
    assert isinstance(late, Shaped)
    ended_s = _end_s(late.trajectory)
    assert ended_s < 10.97 + 1.25 - 0.5
    assert not link.send(late, 11.0, ended_s + 0.02)
    assert link.peers.is_lost(late.trajectory.sequence)
    for tick in range(5):
        at_s = ended_s + 0.1 + 0.1 * tick
        shaped = link.shape(at_s, 0.5, lead_s)
        assert isinstance(shaped, Shaped)
        assert (shaped.followed is None) is (tick == 0)
        assert link.send(shaped, at_s, at_s + 0.02)
    link.assert_no_step(13.0)


def test_a_late_path_that_leaves_the_arm_where_it_rests_is_not_lost() -> None:
    """Started or not, the arm is at its end: a path from a measured arm that sags would lower it
    with each stall of the link."""
    link = Link(sag_rad=0.03)
    for at_s in (9.0, 9.6, 10.2):
        assert link.send(link.shape(at_s, 0.02), at_s, at_s + 0.02)
    held = link.shape(11.0, 0.02)
    assert isinstance(held, Shaped)
    assert not link.send(held, 11.0, _end_s(held.trajectory) + 0.1)
    assert not link.peers.is_lost(held.trajectory.sequence)
    following = link.shape(11.4, 0.02)
    assert isinstance(following, Shaped)
    assert following.followed is not None
    np.testing.assert_allclose(
        following.trajectory.position_rad[-1, :7],
        link.controller.update(ROBOT_CLOCK_S + 11.4),
        atol=1e-6,
    )


def test_behind_a_guard_a_path_may_come_until_its_validity_is_over() -> None:
    """The guard re-times it; what it refuses does not come back at all."""
    link = Link(validity_s=1.25)
    late = link.shape(11.0, 0.12, is_guarded=True)
    assert isinstance(late, Shaped)
    link.peers.published(1, 11.0, late.lead_s, late.expires_s)
    link.peers.heard(SESSION, 1, _end_s(late.trajectory) + 0.1)
    assert not link.peers.is_lost(1)


def test_a_path_that_can_no_longer_start_holds_nothing_back() -> None:
    link = Link(validity_s=1.25)
    late = link.shape(11.0, 0.12)
    assert isinstance(late, Shaped)
    link.peers.published(1, 11.0, late.lead_s, late.expires_s)
    link.planner.sent(late)
    hold = link.shape(_end_s(late.trajectory) - 0.01, 0.12)
    assert isinstance(hold, Hold)
    assert hold.reason is HoldReason.UNCONFIRMED
    assert isinstance(link.shape(_end_s(late.trajectory) + 0.01, 0.12), Shaped)


@pytest.mark.parametrize("lead_s", [0.095, 0.25])
def test_the_path_is_forgotten_when_another_loop_has_driven(lead_s: float) -> None:
    """The other may leave the arm so near to its end that it would count as followed."""
    link = Link()
    assert link.send(link.shape(10.0, 0.05, lead_s), 10.0, 10.02)
    other = TrajectoryPlanner("ffffffff", 0.5, Limits(), Peers("ffffffff"))
    targets = np.tile(HOME_RAD, (5, 1))
    targets[:, 0] += 0.17
    theirs = other.shape(
        ActionChunk(targets, 0.1), ROBOT_CLOCK_S + 10.97, link.joints(11.0), link.moment(11.0)
    )
    assert isinstance(theirs, Shaped)
    assert link.deliver(theirs.trajectory, 11.02)
    link.peers.heard("ffffffff", 1, 11.04)
    hold = link.peers.verdict(12.9)
    assert hold is not None
    assert hold.reason is HoldReason.OTHER_LOOP
    assert link.peers.verdict(13.1) is None
    for tick in range(3):
        at_s = 13.2 + 0.1 * tick
        shaped = link.shape(at_s, -0.6, lead_s)
        assert isinstance(shaped, Shaped)
        assert (shaped.followed is None) is (tick == 0)
        assert link.send(shaped, at_s, at_s + 0.02)
    link.assert_no_step(14.5)


def test_a_loop_that_drives_against_another_starts_where_the_arm_is() -> None:
    """Both began together, and this one's name wins: until the other has yielded, each of its
    trajectories may have replaced the path, also one that is still under way."""
    link = Link()
    mine = link.shape(10.0, 0.3)
    assert isinstance(mine, Shaped)
    link.peers.published(1, 10.0, mine.lead_s, mine.expires_s)
    link.planner.sent(mine)
    link.deliver(mine.trajectory, 10.02)
    link.peers.heard("ffffffff", 1, 10.03)
    assert link.peers.overdue_s(10.21) is not None, "it still may start late"
    link.peers.heard(SESSION, 1, 10.22)
    assert link.peers.verdict(10.22) is None
    shaped = link.shape(10.25, 0.3)
    assert isinstance(shaped, Shaped)
    assert shaped.followed is None
    assert link.send(shaped, 10.25, 10.27)
    shaped = link.shape(10.35, 0.3)
    assert isinstance(shaped, Shaped)
    assert shaped.followed is not None
    link.assert_no_step(11.5)
