"""One loop on a fake clock, tick by tick, with a robot that is only bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import simplejpeg

from crane_x7_remote.inference.config import LoopConfig
from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.loop import InferenceLoop
from crane_x7_remote.inference.tick_log import Sent
from crane_x7_remote.inference.trajectory import state_at
from crane_x7_remote.rosbridge import loop_status
from crane_x7_remote.rosbridge.frames import EncodedFrame
from crane_x7_remote.rosbridge.joint_watch import JointFault
from crane_x7_remote.rosbridge.loop_status import LoopStatus
from crane_x7_remote.rosbridge.messages import RosVersion, StampedJoints
from crane_x7_remote.rosbridge.robot_clocks import ClockReport
from crane_x7_remote.rosbridge.topics import STATUS_TOPIC
from crane_x7_vla_rl import robot
from crane_x7_vla_rl.types import ActionChunk, JointState, Observation, Trajectory

ROBOT_CLOCK_S = 1_700_003_600.0
"""The robot's clock minus ours."""
CAMERA_PERIOD_S = 1 / 30
TRAVEL_S = 0.004


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += max(seconds, 0.0)


@cache
def a_jpeg() -> bytes:
    encoded: bytes = simplejpeg.encode_jpeg(np.full((48, 64, 3), 90, np.uint8))
    return encoded


@dataclass
class Link:
    connected: bool = True
    reconnects: int = 0
    rtt_s: float | None = 0.008
    ros_version: RosVersion | None = 2
    ros_version_doubt: str | None = None
    no_frame_because: str | None = None
    no_wrist_frame_because: str | None = None
    no_joints_because: str | None = None
    unknown_operations: Sequence[str] = ()


@dataclass
class FakeClient:
    """Serves frames at 30 Hz of fake time; its arm follows what is published at once."""

    clock: Clock
    link: Link = field(default_factory=Link)
    published: list[list[dict[str, Any]]] = field(default_factory=list)
    goals: list[tuple[float, float]] = field(default_factory=list)
    """When which gripper goal was sent."""
    advertised: dict[str, str] = field(default_factory=dict)
    camera_runs: bool = True
    jpeg: bytes = field(default_factory=a_jpeg)
    stamp_offset_s: float = ROBOT_CLOCK_S
    accepts: bool = True
    drops: bool = False
    """Whether bundles are accepted, and then dropped on the network thread."""
    echoes: bool = True
    instructions: list[str] = field(default_factory=list)
    listener: Callable[[Mapping[str, Any]], None] | None = None
    statuses: list[LoopStatus] = field(default_factory=list)
    camera_says: Callable[[Mapping[str, Any]], None] | None = None
    guard_says: Callable[[Mapping[str, Any]], None] | None = None
    result_says: Callable[[Mapping[str, Any]], None] | None = None
    trajectory: Trajectory | None = None
    measured: StampedJoints | None = None
    earlier: tuple[StampedJoints, ...] = ()
    """Joint states before the newest one."""
    clock_report: ClockReport | None = None
    fault: JointFault | None = None
    is_blocked: bool = False
    wrist: EncodedFrame | None = None
    _frame: EncodedFrame | None = None

    def wrist_frame(self) -> EncodedFrame | None:
        return self.wrist

    def latest_frame(self) -> EncodedFrame | None:
        if self.camera_runs:
            index = int((self.clock.now_s - TRAVEL_S + 1e-9) / CAMERA_PERIOD_S)
            arrival_s = index * CAMERA_PERIOD_S + TRAVEL_S
            if self._frame is None or arrival_s > self._frame.arrival_s + 1e-6:
                stamp_s = index * CAMERA_PERIOD_S + self.stamp_offset_s
                self._frame = EncodedFrame(self.jpeg, "jpeg", stamp_s, arrival_s)
        return self._frame

    def wait_frame(self, newer_than: EncodedFrame | None, timeout_s: float) -> EncodedFrame | None:
        end_s = self.clock.now_s + timeout_s
        while self.clock.now_s < end_s:
            self.clock.now_s = min(self.clock.now_s + 0.0005, end_s)
            if self.latest_frame() is not newer_than:
                return self._frame
        return None

    def joints(self) -> StampedJoints | None:
        if self.measured is not None:
            return self.measured
        now_s = self.clock.now_s
        position, velocity = robot.HOME_RAD, np.zeros(8)
        if self.trajectory is not None and not self.is_blocked:
            position, velocity = state_at(self.trajectory, now_s + ROBOT_CLOCK_S)
        return StampedJoints(JointState(position, velocity), now_s + ROBOT_CLOCK_S, now_s)

    def recent_joints(self) -> tuple[StampedJoints, ...]:
        newest = self.joints()
        return () if newest is None else (*self.earlier, newest)

    def take_instruction(self) -> str | None:
        return self.instructions.pop(0) if self.instructions else None

    def frame_age_s(self, frame: EncodedFrame, now: float) -> float:
        return max(now - frame.arrival_s, now + ROBOT_CLOCK_S - frame.stamp_s)

    def robot_time(self, now: float) -> float | None:
        return now + ROBOT_CLOCK_S

    def publish(
        self,
        operations: Sequence[dict[str, Any]],
        leave_by_s: float | None = None,
        dropped: Callable[[], None] | None = None,
    ) -> bool:
        del leave_by_s
        if not self.accepts or not self.link.connected:
            return False
        if self.drops:
            if dropped is not None:
                dropped()
            return True
        self.published.append(list(operations))
        self.goals += [
            (self.clock.now_s, operation["args"]["command"]["position"])
            for operation in operations
            if operation["op"] == "send_action_goal"
        ]
        has_path = len(operations) > 1
        if has_path and self.echoes and self.listener is not None:
            self.listener(operations[1]["msg"])
        return True

    def tell(self, operation: Mapping[str, Any]) -> bool:
        assert operation["topic"] == STATUS_TOPIC
        self.statuses.append(loop_status.read(operation["msg"]))
        return True

    def advertise(self, topic: str, type_name: str) -> None:
        self.advertised[topic] = type_name

    def hear_results(self, callback: Callable[[Mapping[str, Any]], None]) -> None:
        self.result_says = callback

    def clocks(self, now: float) -> ClockReport:
        return self.clock_report or ClockReport(self.robot_time(now), difference_s=0.0)

    def joint_fault(self, now: float) -> JointFault | None:
        del now
        return self.fault

    def subscribe(
        self, topic: str, type_name: str, callback: Callable[[Mapping[str, Any]], None]
    ) -> None:
        if topic == "/vla/guard":
            assert type_name == "std_msgs/String"
            self.guard_says = callback
            return
        if topic == "/vla/camera_pose":
            self.camera_says = callback
            return
        assert topic == "/vla/predicted_trajectory"
        assert type_name == "trajectory_msgs/JointTrajectory"
        self.listener = callback


class MovingPolicy:
    """Wants joint 1 a little further on each call; can be told to misbehave."""

    def __init__(self) -> None:
        self.observations: list[Observation] = []
        self.resets = 0
        self.answer: Callable[[Observation], object] = self._further

    def _further(self, observation: Observation) -> ActionChunk:
        steps = np.tile(observation.joints.position_rad, (5, 1))
        steps[:, 0] += 0.02 * np.arange(1, 6)
        return ActionChunk(np.clip(steps, robot.LOWER_RAD, robot.UPPER_RAD), 0.1)

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        self.observations += observations
        return [self.answer(observation) for observation in observations]  # type: ignore[misc]

    def reset(self) -> None:
        self.resets += 1


class Rig:
    """A loop with everything around it; `tick` moves fake time to the next deadline."""

    def __init__(
        self,
        make_client: Callable[[Clock], FakeClient] = FakeClient,
        policy: MovingPolicy | None = None,
        limits: Limits | None = None,
        **config: Any,
    ) -> None:
        self.clock = Clock()
        self.client = make_client(self.clock)
        self.policy = policy or MovingPolicy()
        values = {"session": "0a1b2c3d", "rate_hz": 10.0, "listen_s": 0.0} | config
        self.loop = InferenceLoop(
            self.client,
            self.policy,
            LoopConfig(**values),
            limits or Limits(),
            self.clock,
            self.clock.sleep,
        )

    def tick(self, times: int = 1) -> Sent | Hold | None:
        for _ in range(times):
            self.clock.now_s = max(self.clock.now_s, self.loop._pacer.deadline_s)
            outcome = self.loop.tick()
            self.loop._pacer.advance(self.clock.now_s)
            if isinstance(outcome, Sent):
                self.client.trajectory = outcome.trajectory
        return outcome

    def reason(self) -> HoldReason:
        outcome = self.tick()
        assert isinstance(outcome, Hold)
        return outcome.reason
