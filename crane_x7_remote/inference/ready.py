"""Whether the robot may be driven now. Newest frame, joints, clocks, peers, guard → `Hold` or None.

Checked before a prediction and again after it, because the prediction takes time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from crane_x7_remote.inference.config import LoopConfig
from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.link.clock_check import check_clocks
from crane_x7_remote.inference.link.echoes import Echoes
from crane_x7_remote.inference.link.ports import LinkState, RobotClient
from crane_x7_remote.inference.outgoing import GRIPPER_GOAL_TYPE, Dialect
from crane_x7_remote.inference.safety import check_frame, check_joints
from crane_x7_remote.rosbridge.frames import EncodedFrame
from crane_x7_remote.rosbridge.messages import StampedJoints

logger = logging.getLogger(__name__)

UNUSABLE_JOINTS = frozenset(
    {
        HoldReason.LINK_DOWN,
        HoldReason.NO_JOINTS,
        HoldReason.JOINTS_STALE,
        HoldReason.JOINTS_NOT_FINITE,
        HoldReason.JOINTS_IMPOSSIBLE,
        HoldReason.JOINTS_CONFLICT,
        HoldReason.CLOCK_UNKNOWN,
        HoldReason.CLOCK_STEPPED,
        HoldReason.CLOCK_RATE,
    }
)
"""With these holds, the measured joints or their times say nothing about the arm."""


class Readiness:
    """Checks everything that can forbid driving."""

    def __init__(
        self,
        client: RobotClient,
        config: LoopConfig,
        limits: Limits,
        echoes: Echoes,
        clock: Callable[[], float],
        on_step: Callable[[], None],
    ) -> None:
        """`on_step` is called when one of the robot's clocks was stepped."""
        self._client = client
        self._config = config
        self._limits = limits
        self._peers = echoes.peers
        self._guard = echoes.guard
        self._following = echoes.following
        self._clock = clock
        self._on_step = on_step
        self._clock_steps = 0
        self.dialect: Dialect | None = None
        """The server's variant of the protocol; None until it is known."""
        self._path_ends_s = float("-inf")
        """When the last trajectory sent ends, on our clock."""
        self.old_path_ends_s = float("-inf")
        """The same for the trajectories sent before the last step of a clock."""

    def link_came_up(self) -> None:
        """Forget the dialect: a new link may lead to another server."""
        self.dialect = None

    def sent(self, path_ends_s: float) -> None:
        """Note when the trajectory that was just sent ends, on our clock."""
        self._path_ends_s = path_ends_s

    def frame(self, frame: EncodedFrame | None, any_used: bool) -> Hold | None:
        """Return why `frame`, the newest unused one, must not be acted on."""
        if frame is None:
            hold = check_frame(None, 0.0, any_used, self._config.max_frame_age_s)
            return _explained(hold, self._client.link.no_frame_because)
        limit_s = self._config.max_frame_age_s
        hold = check_frame(0.0, frame.stamp_s, True, limit_s) or self._check_clocks()
        if hold is not None:
            return hold
        age_s = self._client.frame_age_s(frame, self._clock())
        return check_frame(age_s, frame.stamp_s, True, limit_s)

    def robot(self, joints: StampedJoints | None) -> Hold | None:
        """Return what forbids driving, apart from the frame; checked before a prediction and again
        after it."""
        now_s = self._clock()
        link = self._client.link
        if not link.connected:
            return Hold(HoldReason.LINK_DOWN, "the link went down during the prediction")
        state = None if joints is None else joints.state
        age_s = 0.0 if joints is None else self._joints_age_s(joints, now_s)
        hold = check_joints(
            state,
            age_s,
            self._limits,
            self._config.max_frame_age_s,
            fault=self._client.joint_fault(now_s),
        )
        if hold is not None and hold.reason in (HoldReason.NO_JOINTS, HoldReason.JOINTS_STALE):
            hold = _explained(hold, link.no_joints_because)
        hold = hold or self._learn_dialect(link) or self._check_clocks() or self._check_guard(now_s)
        hold = hold or self._following.hold
        if hold is None and not self._config.dry_run:
            hold = self._peers.verdict(now_s)
        return hold

    def _check_guard(self, now_s: float) -> Hold | None:
        stopped = self._guard.stopped(now_s)
        if stopped is None:
            return None
        self._following.restart()  # the guard moved the arm off the loop's path
        return Hold(HoldReason.STOPPED, f"{stopped}; to continue, run `crane-x7-remote resume`")

    def _learn_dialect(self, link: LinkState) -> Hold | None:
        """Determine the server's dialect; a Hold until it is known."""
        if link.ros_version is None:
            return Hold(
                HoldReason.ROS_VERSION_UNKNOWN, link.ros_version_doubt or "no stamp received yet"
            )
        has_actions = link.ros_version == 2 and "send_action_goal" not in link.unknown_operations
        dialect = Dialect(link.ros_version, has_actions)
        if dialect == self.dialect:
            return None
        self.dialect = dialect
        topic = self._config.topics.gripper_goal
        way = "as an action" if has_actions else f"on {topic}"
        logger.info("the robot runs ROS %d; gripper goals are sent %s", dialect.version, way)
        if topic and not has_actions and not self._config.dry_run:
            self._client.advertise(topic, GRIPPER_GOAL_TYPE)
        return None

    def _check_clocks(self) -> Hold | None:
        """Return why the robot's clocks forbid driving; None before the first joint state."""
        if self._client.joints() is None:
            return None
        now_s = self._clock()
        report = self._client.clocks(now_s)
        self.notice_clock(report.steps)
        return check_clocks(report, now_s, self._config.max_frame_age_s, self.old_path_ends_s)

    def _joints_age_s(self, joints: StampedJoints, now_s: float) -> float:
        """Return the larger of both ages, by arrival and by the robot's stamp."""
        age_s = now_s - joints.arrival_s
        robot_s = self._client.robot_time(now_s)
        if robot_s is None or joints.stamp_s <= 0:
            return age_s
        return max(age_s, robot_s - joints.stamp_s)

    def notice_clock(self, steps: int) -> None:
        """Forget the path after a step of a clock: older stamps mean other times."""
        if steps != self._clock_steps:
            self._clock_steps = steps
            self.old_path_ends_s = self._path_ends_s
            self._on_step()


def _explained(hold: Hold | None, because: str | None) -> Hold | None:
    """Return the hold with the cause that the client knows."""
    if hold is None or because is None:
        return hold
    return replace(hold, detail=f"{hold.detail}: {because}")
