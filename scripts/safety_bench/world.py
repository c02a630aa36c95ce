"""Loop, link, guard and robot in one simulated time: faults → the path that the arm's controller
executed.

The loop, its client's inbox, the guard's core and the arm's controller are the real ones; sockets
and processes are not. Time passes when the loop sleeps or waits for a frame or for its policy, so
an hour of driving takes minutes, and a run with a seed is reproducible. `processes.py` does the
same with real processes.

    robot ─ local hop ─ guard (optional) ─ link ─ loop
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import simplejpeg

from crane_x7_remote.inference.config import LoopConfig
from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.loop import InferenceLoop
from crane_x7_remote.inference.outgoing import OutgoingTopics
from crane_x7_remote.rosbridge import inbox as inbox_module
from crane_x7_remote.rosbridge import messages, protocol
from crane_x7_remote.rosbridge.frames import EncodedFrame
from crane_x7_remote.rosbridge.joint_watch import JointFault
from crane_x7_remote.rosbridge.messages import StampedJoints
from crane_x7_remote.rosbridge.robot_clocks import ClockReport
from crane_x7_remote.sim_robot.controller import TrajectoryController, TrajectoryRefused
from crane_x7_remote.sim_robot.executed import Executed, ExecutionFigures
from crane_x7_vla_rl.robot import (
    ARM_DOF,
    HOME_RAD,
    JOINT_NAMES,
    LOWER_RAD,
    UPPER_RAD,
)
from crane_x7_vla_rl.types import ActionChunk, Observation

CAMERA = "/camera/color/image_raw/compressed"
JOINTS = "/joint_states"
ARM = OutgoingTopics().arm
PREDICTION = OutgoingTopics().trajectory
GUARD = "/vla/guard"
UPDATE_S = 0.005
LOCAL_HOP_S = (0.0002, 0.002)
"""Shortest and longest delay between guard and rosbridge."""
RECONNECT_S = 0.1
ROBOT_EPOCH_S = 1_700_000_000.0


@cache
def _jpeg() -> bytes:
    encoded: bytes = simplejpeg.encode_jpeg(np.full((24, 32, 3), 90, np.uint8))
    return encoded


@dataclass(frozen=True)
class Case:
    """One row: faults of the link, the clocks and the processes."""

    name: str
    seconds: float = 60.0
    rate_hz: float = 10.0
    camera_hz: float = 30.0
    joints_hz: float = 60.0
    policy_s: float = 0.01
    validity_s: float = 0.5
    delay_s: float = 0.002
    """Delay in each direction."""
    jitter_s: float = 0.001
    stall_s: tuple[float, float] | None = None
    """Shortest and longest stop of `stalled`."""
    stalled: tuple[str, ...] = ("link",)
    """Parts that may stop (link, robot, guard, loop); one is chosen at random each time."""
    stalls_per_minute: float = 40.0
    clock_steps_s: tuple[float, ...] = ()
    """The robot's clock is stepped by these one after another, evenly over the run."""
    loss: float = 0.0
    """Share of messages with a lost packet. TCP sends it again after a round trip, and after its
    timeout if that is lost too; later messages wait for it."""
    start_outside_rad: float = 0.0
    """How far outside joint 2's upper limit the arm is at the start."""
    speed: float = 1.0
    """Share of the limits that a path may use (SPEED)."""
    guard: bool = False
    fixed_lead: bool = False
    """The earlier rule: round trip + 20 ms, nothing held back."""
    settle_s: float = 0.0
    """Time at the start that is not measured."""


@dataclass
class Result:
    """Measurements of the controller's updates of 5 ms."""

    name: str
    seconds: float
    guard: bool
    trajectories: int = 0
    velocity_ratio: float = 0.0
    acceleration_rad_s2: float = 0.0
    worst_step_rad: float = 0.0
    """Largest change of a joint's movement from one update to the next."""
    steps: int = 0
    """Updates with such a change above 0.001 rad."""
    steps_2mrad: int = 0
    velocity_violations: int = 0
    """Updates above 1.02 × the velocity limit."""
    acceleration_violations: int = 0
    """Updates above 1.1 × the acceleration limit."""
    expired_accepted: int = 0
    """Trajectories that the controller started after their validity."""
    slowest_return_s: float = 0.0
    """Longest time from the end of a fault to the next accepted trajectory."""
    holds: dict[str, int] = field(default_factory=dict)
    lead_p50_ms: float = 0.0
    stalls: int = 0
    guard_report: dict[str, Any] = field(default_factory=dict)


class Timeline:
    """Events in order of time; `run_until` advances the time."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def at(self, time_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (max(time_s, self.now_s), next(self._count), event))

    def run_until(self, time_s: float, done: Callable[[], bool] = lambda: False) -> None:
        while self._events and self._events[0][0] <= time_s:
            self.now_s, _, event = heapq.heappop(self._events)
            event()
            if done():
                return
        self.now_s = max(self.now_s, time_s)


class Stops:
    """Times at which a process or a link is stopped."""

    def __init__(self) -> None:
        self._until_s = 0.0

    def stop(self, until_s: float) -> None:
        self._until_s = max(self._until_s, until_s)

    def resumes_s(self, now_s: float) -> float:
        """Return the first time from `now_s` on at which it runs."""
        return max(now_s, self._until_s)


class Way:
    """One direction between two parts: keeps the order, delays, stops with its ends."""

    def __init__(
        self,
        timeline: Timeline,
        delay: Callable[[], float],
        stops: Sequence[Stops],
        deliver: Callable[[Any], None],
    ) -> None:
        self._timeline = timeline
        self._delay = delay
        self._stops = stops
        self._deliver = deliver
        self._last_s = 0.0

    def send(self, item: Any) -> None:
        due_s = max(self._timeline.now_s + self._delay(), self._last_s)
        self._last_s = due_s
        self._timeline.at(due_s, lambda: self._arrive(item))

    def _arrive(self, item: Any) -> None:
        now_s = self._timeline.now_s
        resumes_s = max(each.resumes_s(now_s) for each in self._stops)
        if resumes_s > now_s:
            self._last_s = max(self._last_s, resumes_s)
            self._timeline.at(resumes_s, lambda: self._arrive(item))
            return
        self._deliver(item)


class Robot:
    """The robot's side: controller, joint states, camera, and rosbridge's forwarding."""

    def __init__(self, world: World) -> None:
        case, self._world, self._timeline = world.case, world, world.timeline
        self.stops = Stops()
        self.stepped_s = 0.0
        start = HOME_RAD.copy()
        if case.start_outside_rad:
            start[1] = UPPER_RAD[1] + case.start_outside_rad
        self._start = start
        self._judged_from_s = self.steady_s() + case.settle_s
        self._executed = Executed(start[:ARM_DOF])
        self._before, self._velocity = start[:ARM_DOF], np.zeros(ARM_DOF)
        self.controller = TrajectoryController(start[:ARM_DOF], self.steady_s(), self._judge)
        self._grip = start[-1]
        self._every(1 / case.joints_hz, self._publish_joints)
        self._every(1 / case.camera_hz, self._publish_frame)

    @property
    def measured(self) -> ExecutionFigures:
        self.controller.update(self.steady_s())
        return self._executed.measured

    def _judge(self, times_s: np.ndarray, positions: np.ndarray) -> None:
        path = np.vstack([self._before, positions])
        self._velocity, self._before = (path[-1] - path[-2]) / UPDATE_S, path[-1]
        self._executed.add(positions)
        if times_s[0] < self._judged_from_s:
            self._executed.measured = ExecutionFigures()

    def steady_s(self) -> float:
        return self._timeline.now_s + ROBOT_EPOCH_S

    def time_s(self) -> float:
        return self.steady_s() + self.stepped_s

    def step_clock(self, seconds: float) -> None:
        self.controller.step_clock(seconds, self.steady_s())
        self.stepped_s += seconds

    def _every(self, period_s: float, publish: Callable[[], None]) -> None:
        """Publish at each period; periods during a stop are skipped."""
        start_s = self._timeline.now_s

        def due(count: int) -> None:
            now_s = self._timeline.now_s
            resumes_s = self.stops.resumes_s(now_s)
            if resumes_s > now_s:
                self._timeline.at(resumes_s, lambda: due(count))
                return
            publish()
            after = max(count, int((now_s - start_s) / period_s)) + 1
            self._timeline.at(start_s + after * period_s, lambda: due(after))

        self._timeline.at(start_s, lambda: due(0))

    def _publish_joints(self) -> None:
        now_s = self.time_s()
        position = self.controller.update(self.steady_s())
        velocity = self._velocity
        message = messages.joint_state_to_ros(
            JOINT_NAMES, np.append(position, self._grip), np.append(velocity, 0.0), now_s
        )
        self._world.from_robot(JOINTS, message)

    def _publish_frame(self) -> None:
        self._world.from_robot(CAMERA, messages.compressed_image(_jpeg(), self.time_s()))

    def receive(self, item: tuple[str, Mapping[str, Any]]) -> None:
        """Handle one published message, then echo it to the subscribers."""
        topic, message = item
        if topic == ARM:
            trajectory = messages.trajectory(message)
            try:
                self.controller.accept(trajectory, self.steady_s())
            except TrajectoryRefused:
                pass
            else:
                self._world.accepted(trajectory, self.time_s())
        self._world.from_robot(topic, message)


class Client:
    """The loop's interface to the link; see loop.Client."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.link = self
        self.connected, self.reconnects = True, 0
        self.rtt_s: float | None = 2 * world.case.delay_s
        self.ros_version = 2
        self.ros_version_doubt = self.no_frame_because = self.no_joints_because = None
        self.unknown_operations: tuple[str, ...] = ()
        self._callbacks: dict[str, Callable[[Mapping[str, Any]], None]] = {}
        self._inbox = inbox_module.Inbox(
            inbox_module.IncomingTopics(CAMERA, JOINTS, "/vla/update_instruction"),
            protocol.MAX_MESSAGE_BYTES,
            adapts_throttle=False,
            on_throttle=lambda _: None,
        )
        self._inbox.link_came_up()
        self.sending = False

    def hear(self, payload: str | bytes) -> None:
        if self.connected and self._inbox.take(payload, self._world.timeline.now_s):
            self.connected = False  # like the real client: the connection is established again
            self._world.timeline.at(self._world.timeline.now_s + RECONNECT_S, self._come_up)

    def _come_up(self) -> None:
        self._inbox.link_came_up()
        self.connected, self.reconnects = True, self.reconnects + 1

    def latest_frame(self) -> EncodedFrame | None:
        return self._inbox.frame

    def wait_frame(self, newer_than: EncodedFrame | None, timeout_s: float) -> EncodedFrame | None:
        inbox = self._inbox
        self._world.pass_time(timeout_s, lambda: inbox.frame is not newer_than)
        return None if inbox.frame is newer_than else inbox.frame

    def joints(self) -> StampedJoints | None:
        return self._inbox.joints

    def take_instruction(self) -> str | None:
        return self._inbox.take_instruction()

    def frame_age_s(self, frame: EncodedFrame, now: float) -> float:
        return max(now - frame.arrival_s, self._inbox.age_s(frame.stamp_s, now))

    def clocks(self, now: float) -> ClockReport:
        return self._inbox.clocks(now)

    def joint_fault(self, now: float) -> JointFault | None:
        return self._inbox.joint_fault(now)

    def advertise(self, topic: str, type_name: str) -> None:
        """Its robot accepts everything."""

    def tell(self, operation: Mapping[str, Any]) -> bool:
        """Ignore a status; nothing in this world reads it."""
        del operation
        return self.connected

    def robot_time(self, now: float) -> float | None:
        return self._inbox.robot_time(now)

    def publish(
        self,
        operations: Sequence[dict[str, Any]],
        leave_by_s: float | None = None,
        dropped: Callable[[], None] | None = None,
    ) -> bool:
        world = self._world
        now_s = world.timeline.now_s + 0.0002
        leaves_s = world.loop_stops.resumes_s(now_s)
        if leave_by_s is not None and leaves_s > leave_by_s and not world.case.fixed_lead:
            if dropped is not None:
                world.timeline.at(leaves_s, dropped)  # on the network thread
            return True
        for operation in operations:
            if operation["op"] == "publish" and operation["topic"] in (ARM, PREDICTION):
                item = (operation["topic"], operation["msg"])
                world.timeline.at(leaves_s, lambda item=item: world.up.send(item))
        return True

    def hear_results(self, callback: Callable[[Mapping[str, Any]], None]) -> None:
        """Its robot accepts every goal."""

    def subscribe(
        self, topic: str, type_name: str, callback: Callable[[Mapping[str, Any]], None]
    ) -> None:
        del type_name
        self._inbox.listen(topic, callback)


SWINGS = ((0.4, 6.0), (0.3, 7.0), (0.4, 5.0), (0.3, 8.0))
"""Amplitude and largest velocity of the first four joints: rad and rad/s."""
REACH_RAD = 0.4
"""Largest distance of a target from the previous one, and of the first one from the arm."""


def swing(seen: Observation, time_s: float) -> ActionChunk:
    """Return six targets, 0.1 s apart, that swing round the home pose."""
    targets = np.tile(HOME_RAD, (6, 1))
    for joint, (size, pace) in enumerate(SWINGS):
        targets[:, joint] += size * np.sin(pace * (time_s + 0.1 * np.arange(1, 7)) + joint)
    before = seen.joints.position_rad
    for target in targets:
        target[:] = before = np.clip(target, before - REACH_RAD, before + REACH_RAD)
    return ActionChunk(np.clip(targets, LOWER_RAD, UPPER_RAD), 0.1)


class FastPolicy:
    """Swings four joints at up to half of the velocity limit; takes `policy_s` of that time."""

    def __init__(self, world: World) -> None:
        self._world = world

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        self._world.pass_time(self._world.case.policy_s)
        return [swing(observations[0], observations[0].time_s)]

    def reset(self) -> None:
        """Do nothing; the policy has no state."""


class World:
    """One case, from start to end."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        self.case = case
        self.rng = np.random.default_rng(seed)
        self.timeline = Timeline()
        self.result = Result(case.name, case.seconds, case.guard)
        self.loop_stops, self.link_stops, self.guard_stops = Stops(), Stops(), Stops()
        self.robot = Robot(self)
        self._fault_ended_s: float | None = None
        self.guard = _Guard(self) if case.guard else None
        timeline, link = self.timeline, self.link_stops
        near = [link, self.guard_stops if case.guard else self.robot.stops]
        entry = self.guard.from_loop if self.guard else self.robot.receive
        self.up = Way(timeline, self._delay, near, entry)
        self.client = Client(self)
        self.down = Way(timeline, self._delay, [link, self.loop_stops], self.client.hear)
        config = LoopConfig(
            "0a1b2c3d", rate_hz=case.rate_hz, validity_s=case.validity_s, listen_s=0.0
        )
        self.loop = InferenceLoop(
            self.client,  # type: ignore[arg-type]
            FastPolicy(self),
            config,
            Limits(speed=case.speed),
            lambda: self.timeline.now_s,
            self.pass_time,
        )
        if case.fixed_lead:
            _as_before(self.loop)
        self._plan_faults()

    def run(self) -> Result:
        self.loop.run(duration_s=self.case.seconds)
        self.timeline.run_until(self.timeline.now_s + 2.0)
        measured = self.robot.measured
        self.result.steps, self.result.steps_2mrad = measured.steps, measured.steps_2mrad
        self.result.velocity_violations = measured.velocity_violations
        self.result.acceleration_violations = measured.acceleration_violations
        self.result.velocity_ratio = measured.max_velocity_ratio
        self.result.acceleration_rad_s2 = measured.max_acceleration_rad_s2
        self.result.worst_step_rad = measured.max_acceleration_rad_s2 * UPDATE_S**2
        snapshot = self.loop.metrics.snapshot()
        self.result.trajectories = snapshot["trajectories"]
        self.result.holds = dict(self.loop.metrics.holds)
        self.result.lead_p50_ms = snapshot["lead_ms"]["p50"] or 0.0
        if self.guard is not None:
            self.result.guard_report = self.guard.core.report(self.timeline.now_s)
        return self.result

    def pass_time(self, seconds: float, done: Callable[[], bool] = lambda: False) -> None:
        """Advance the time of the loop's process; return when it runs again."""
        timeline = self.timeline
        timeline.run_until(timeline.now_s + max(seconds, 0.0), done)
        while (resumes_s := self.loop_stops.resumes_s(timeline.now_s)) > timeline.now_s:
            timeline.run_until(resumes_s)

    def from_robot(self, topic: str, message: Mapping[str, Any]) -> None:
        if self.guard is not None:
            self.guard.robot_says.send((topic, message))
        else:
            self.to_loop(topic, message)

    def to_loop(self, topic: str, message: Mapping[str, Any]) -> None:
        if topic in (CAMERA, JOINTS, PREDICTION, GUARD):
            operation = protocol.publish(topic, message)
            encode = protocol.encode_cbor if topic == CAMERA else protocol.encode_json
            self.down.send(encode(operation))

    def accepted(self, trajectory: messages.ParsedTrajectory, now_s: float) -> None:
        valid_s = trajectory.valid_s
        if valid_s is not None and now_s > trajectory.stamp_s + valid_s:
            self.result.expired_accepted += 1
        if self._fault_ended_s is not None and trajectory.session is not None:
            returned_s = self.timeline.now_s - self._fault_ended_s
            self.result.slowest_return_s = max(self.result.slowest_return_s, returned_s)
            self._fault_ended_s = None

    def _delay(self) -> float:
        case = self.case
        delay_s = case.delay_s + case.jitter_s * float(self.rng.random())
        again_s = 2 * case.delay_s + 0.01
        while case.loss and self.rng.random() < case.loss:
            delay_s += again_s
            again_s = max(2 * again_s, 0.2 + 2 * case.delay_s)
        return delay_s

    def _plan_faults(self) -> None:
        case, start_s = self.case, self.timeline.now_s
        parts = {
            "link": self.link_stops, "robot": self.robot.stops,
            "guard": self.guard_stops, "loop": self.loop_stops,
        }  # fmt: skip
        if case.stall_s is not None:
            time_s = start_s + 3.0
            while time_s < start_s + case.seconds - 3.0:
                length_s = float(self.rng.uniform(*case.stall_s))
                part = parts[str(self.rng.choice(case.stalled))]
                self.timeline.at(time_s, lambda p=part, n=length_s: self._stall(p, n))
                self.result.stalls += 1
                time_s += length_s + float(self.rng.exponential(60 / case.stalls_per_minute))
        for index, step_s in enumerate(case.clock_steps_s):
            time_s = start_s + case.seconds * (index + 0.5) / len(case.clock_steps_s)
            self.timeline.at(time_s + float(self.rng.random()), lambda s=step_s: self._step(s))

    def _stall(self, part: Stops, length_s: float) -> None:
        end_s = self.timeline.now_s + length_s
        part.stop(end_s)
        self.timeline.at(end_s, self._fault_over)

    def _step(self, seconds: float) -> None:
        self.robot.step_clock(seconds)
        self._fault_over()

    def _fault_over(self) -> None:
        self._fault_ended_s = self.timeline.now_s


class _Guard:
    """The real core, with hops of a local socket around it."""

    def __init__(self, world: World) -> None:
        from crane_x7_remote.guard.core import CoreConfig, GuardCore

        self._world = world
        self.core = GuardCore(CoreConfig())
        hop: Callable[[], float] = lambda: float(world.rng.uniform(*LOCAL_HOP_S))  # noqa: E731
        guard, robot = world.guard_stops, world.robot.stops
        self._to_robot = Way(world.timeline, hop, [robot], world.robot.receive)
        self.robot_says = Way(world.timeline, hop, [guard], self._from_robot)
        self._planned_s: float | None = None
        self.carry_out(self.core.upstream_changed(True, world.timeline.now_s))
        self._tell_state()

    def _tell_state(self) -> None:
        """Publish the guard's presence once a second, like the gate."""
        world = self._world
        state = json.dumps({"you": 1, "stopped": self.core.stopped})
        world.timeline.at(
            world.timeline.now_s + 1.0,
            lambda: (world.to_loop(GUARD, {"data": state}), self._tell_state()),
        )

    def from_loop(self, item: tuple[str, Mapping[str, Any]]) -> None:
        topic, message = item
        now_s = self._world.timeline.now_s
        take = self.core.take_trajectory if topic == ARM else self.core.take_prediction
        self.carry_out(take(1, message, now_s))

    def _from_robot(self, item: tuple[str, Mapping[str, Any]]) -> None:
        topic, message = item
        now_s = self._world.timeline.now_s
        self._world.to_loop(topic, message)
        if topic == JOINTS:
            self.carry_out(self.core.hear_joints(message, now_s))
        elif topic == ARM:
            self.carry_out(self.core.hear_echo(message, now_s))

    def carry_out(self, outputs: Sequence[Any]) -> None:
        from crane_x7_remote.guard.core import Send

        for output in outputs:
            if isinstance(output, Send):
                self._to_robot.send((output.topic, output.message))
        wake_s = self.core.wake_s
        if wake_s is not None and wake_s != self._planned_s:
            self._planned_s = wake_s
            self._world.timeline.at(wake_s, self._wake)

    def _wake(self) -> None:
        now_s = self._world.timeline.now_s
        resumes_s = self._world.guard_stops.resumes_s(now_s)
        if resumes_s > now_s:
            self._world.timeline.at(resumes_s, self._wake)
            return
        self._planned_s = None
        if self.core.wake_s is not None and now_s >= self.core.wake_s:
            self.carry_out(self.core.wake(now_s))
        else:
            self.carry_out(())


def _as_before(loop: InferenceLoop) -> None:
    """Let the loop lead by the round trip + 20 ms and build on unconfirmed trajectories, as
    before."""
    delay: Any = loop._echoes.delay
    peers: Any = loop._peers
    delay.lead_s = lambda *_: min(delay.typical_s + 0.02, 0.2)
    peers.overdue_s = lambda _: None
