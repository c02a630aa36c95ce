"""The clocks of one robot, one estimate per stamped topic. Stamps, arrivals → `ClockReport`. Pure.

The robot's time is the clock of the joint states, which is also the arm controller's; a camera may
be on a machine with another clock.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from crane_x7_remote.rosbridge.clock import ClockOffset, ClockStep
from crane_x7_remote.rosbridge.clock_rate import ClockRate


@dataclass(frozen=True)
class ClockReport:
    """The state of the robot's clocks at one moment."""

    robot_s: float | None
    """The robot's time, on the clock of the joint states; None: unknown (yet)."""
    is_settled: bool = True
    """Whether enough joint states were received to trust `robot_s`."""
    joints_are_unstamped: bool = False
    """Whether joint states have stamp 0."""
    difference_s: float | None = None
    """The camera's clock minus that of the joint states; None until both are known."""
    camera_doubt_s: float | None = None
    """Difference of the newest frame's stamp from the camera's clock; None: it agrees."""
    joints_doubt_s: float | None = None
    """The same for the joint states, if more than one differs."""
    step: ClockStep | None = None
    """The last step of one of the clocks."""
    steps: int = 0
    """Number of steps so far."""
    rate: float | None = None
    """Seconds that the stamps of joint states advance per second; None: about 1."""
    camera_topic: str = "the camera"
    joints_topic: str = "the joint states"


class RobotClocks:
    """Camera and joint states. Fed by one thread; any thread may read.

    The lock keeps a report from showing half of a change: the end of a doubt, say, with the
    estimate of before.
    """

    def __init__(self, camera_topic: str | None, joints_topic: str | None) -> None:
        self.camera = ClockOffset()
        self.joints = ClockOffset()
        self._rate = ClockRate()
        self._unstamped = False
        self._lock = threading.Lock()
        self._topics = camera_topic or "(no camera)", joints_topic or "(no joint states)"

    @property
    def rate(self) -> float | None:
        """See ClockReport."""
        return self._rate.rate

    def reset(self) -> None:
        """Reset for a new link: it may lead to another robot."""
        with self._lock:
            self.camera.reset()
            self.joints.reset()
            self._rate.restart()

    def take_frame(self, stamp_s: float, arrival_s: float) -> bool:
        """Process a frame; False if its stamp must not be used."""
        with self._lock:
            return self._observe(self.camera, self.joints, stamp_s, arrival_s)

    def take_joints(self, stamp_s: float, arrival_s: float) -> bool:
        """Process a joint state; False if its stamp must not be used (yet)."""
        with self._lock:
            self._unstamped = stamp_s <= 0
            if self._unstamped:
                return True
            is_trusted = self._observe(self.joints, self.camera, stamp_s, arrival_s)
            if is_trusted:
                self._rate.observe(stamp_s, arrival_s)
            return is_trusted

    def measured_s(self, stamp_s: float, arrival_s: float) -> float:
        """Return when a trusted joint state was measured, on our monotonic clock."""
        offset_s = self.joints.offset_s(arrival_s)
        if stamp_s <= 0 or offset_s is None:
            return arrival_s
        return min(arrival_s, stamp_s - offset_s)

    def report(self, now_s: float) -> ClockReport:
        """Return the state at our `now_s`."""
        with self._lock:
            return self._report(now_s)

    def _report(self, now_s: float) -> ClockReport:
        camera, joints = self.camera, self.joints
        camera_s, joints_s = camera.offset_s(now_s), joints.offset_s(now_s)
        difference_s = None
        if camera_s is None or joints_s is None:
            pass
        elif camera.is_settled and joints.is_settled:
            difference_s = camera_s - joints_s
        known = [each.step for each in (camera, joints) if each.step is not None]
        camera_doubt, joints_doubt = camera.doubt, joints.doubt
        return ClockReport(
            robot_s=None if self._unstamped else joints.robot_time(now_s),
            is_settled=joints.is_settled,
            joints_are_unstamped=self._unstamped,
            difference_s=difference_s,
            camera_doubt_s=None if camera_doubt is None else camera_doubt[0],
            joints_doubt_s=joints_doubt[0] if joints_doubt and joints_doubt[1] > 1 else None,
            step=max(known, key=lambda step: step.at_s, default=None),
            steps=camera.steps + joints.steps,
            rate=self.rate,
            camera_topic=self._topics[0],
            joints_topic=self._topics[1],
        )

    @staticmethod
    def _observe(own: ClockOffset, other: ClockOffset, stamp_s: float, arrival_s: float) -> bool:
        steps = own.steps
        is_trusted = own.observe(stamp_s, arrival_s)
        if own.steps != steps and own.step is not None:
            other.expect(own.step.by_s, arrival_s)
        return is_trusted
