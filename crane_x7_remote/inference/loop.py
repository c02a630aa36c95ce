"""The inference loop: at each deadline one camera frame becomes one checked trajectory, or a Hold.

Frames, joints and instructions come from the client; trajectories and gripper goals leave through
it. The journey of a frame is `InferenceLoop._decide`, top to bottom. The loop runs on the thread
that calls `run`; the client has its own, and so has the policy.

Legend: H, W image; T steps; 8 joints in the order of `robot.JOINT_NAMES`, rad.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from crane_x7_remote.inference import peers as peers_module
from crane_x7_remote.inference.clock_check import answered_stamp_s, check_clocks
from crane_x7_remote.inference.following import FollowWatch
from crane_x7_remote.inference.guard_state import STATE_TOPIC, GuardState
from crane_x7_remote.inference.journal import Journal, Sent
from crane_x7_remote.inference.link_delay import LinkDelay
from crane_x7_remote.inference.metrics import Metrics
from crane_x7_remote.inference.outgoing import GRIPPER_GOAL_TYPE, Dialect, Outgoing, Topics
from crane_x7_remote.inference.pacing import Pacer
from crane_x7_remote.inference.peers import Peers
from crane_x7_remote.inference.rate import RateWatch
from crane_x7_remote.inference.safety import Hold, HoldReason, Limits, check_frame, check_joints
from crane_x7_remote.inference.shaping import Moment, Shaped, Shaper
from crane_x7_remote.inference.warm_up import warm_up
from crane_x7_remote.inference.worker import Job, Meanwhile, PolicyWorker, Prediction
from crane_x7_remote.rosbridge import messages
from crane_x7_remote.rosbridge.joint_watch import JointFault
from crane_x7_remote.rosbridge.messages import EncodedFrame, RosVersion, StampedJoints
from crane_x7_remote.rosbridge.robot_clocks import ClockReport
from crane_x7_vla_rl.policies.base import Policy
from crane_x7_vla_rl.types import Image, Observation, Trajectory

logger = logging.getLogger(__name__)

AHEAD_S = 0.002
"""How much earlier than decoding needs the next frame of a slow policy is taken: waiting is not
exact."""
GOODBYE_S = 0.2
"""How long the last trajectory may wait for its turn on the socket."""

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
"""Behind these holds the measured joints, or their times, say nothing about the arm."""


class LinkState(Protocol):
    """What the loop needs to know about the connection."""

    @property
    def connected(self) -> bool: ...
    @property
    def reconnects(self) -> int: ...
    @property
    def rtt_s(self) -> float | None: ...
    @property
    def ros_version(self) -> RosVersion | None: ...
    @property
    def ros_version_doubt(self) -> str | None: ...
    @property
    def no_frame_because(self) -> str | None: ...
    @property
    def no_joints_because(self) -> str | None: ...
    @property
    def unknown_operations(self) -> Sequence[str]: ...


class Client(Protocol):
    """The part of rosbridge.client.RosbridgeClient that the loop uses."""

    @property
    def link(self) -> LinkState: ...
    def latest_frame(self) -> EncodedFrame | None: ...
    def wait_frame(
        self, newer_than: EncodedFrame | None, timeout_s: float
    ) -> EncodedFrame | None: ...
    def joints(self) -> StampedJoints | None: ...
    def take_instruction(self) -> str | None: ...
    def frame_age_s(self, frame: EncodedFrame, now: float) -> float: ...
    def robot_time(self, now: float) -> float | None: ...
    def publish(
        self, operations: Sequence[dict[str, Any]], leave_by_s: float | None = None
    ) -> bool: ...
    def advertise(self, topic: str, type_name: str) -> None: ...
    def clocks(self, now: float) -> ClockReport: ...
    def joint_fault(self, now: float) -> JointFault | None: ...
    def subscribe(
        self, topic: str, type_name: str, callback: Callable[[Mapping[str, Any]], None]
    ) -> None: ...


@dataclass(frozen=True)
class LoopConfig:
    """How the loop drives; defaults are those of settings.Settings."""

    session: str
    """8 hex digits that name this loop."""
    rate_hz: float = 10.0
    instruction: str = "pick up the object"
    max_frame_age_s: float = 0.5
    policy_timeout_s: float = 1.0
    validity_s: float = 0.5
    dry_run: bool = False
    topics: Topics = field(default_factory=Topics)
    policy_failing_s: float = 60.0
    """After so many seconds without one good prediction the loop ends with PolicyFailingError."""
    listen_s: float = peers_module.LISTEN_S
    silence_s: float = peers_module.SILENCE_S


@dataclass(frozen=True, eq=False)
class _Asked:
    """A frame that the policy was asked about."""

    frame: EncodedFrame
    job: Job


class InferenceLoop:
    """Drives one robot through `client` with `policy`."""

    def __init__(
        self,
        client: Client,
        policy: Policy,
        config: LoopConfig,
        limits: Limits,
        clock: Callable[[], float],
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        """`clock` gives monotonic seconds; `sleep` defaults to one that `stop` interrupts."""
        self._client = client
        self._policy = policy
        self._config = config
        self._limits = limits
        self._clock = clock
        self._stop = threading.Event()
        self._sleep = sleep or self._stop.wait
        self.metrics = Metrics(config.session, config.rate_hz)
        self._journal = Journal(self.metrics, config.policy_failing_s, config.dry_run)
        self._worker = PolicyWorker(policy, clock)
        self._retimed: messages.ParsedTrajectory | None = None
        """Our newest trajectory as the guard had to change it; set on the client's thread."""
        self._guard = GuardState()
        self._peers = Peers(config.session, config.listen_s, config.silence_s)
        self._delay = LinkDelay()
        self._rtt_s: float | None = None
        self._outgoing = Outgoing(config.topics, config.session)
        self._dialect: Dialect | None = None
        self._instruction = config.instruction
        self.metrics.instruction = config.instruction
        self._pacer = Pacer(1 / config.rate_hz, clock())
        self._rate = RateWatch(self.metrics)
        self._policy_s = self._decode_s = 0.0
        self._asked: _Asked | Hold | None = None
        """What the policy was asked ahead; its answer is the next tick's."""
        self._used: EncodedFrame | None = None
        self._shaper = Shaper(config.session, config.validity_s, limits, self._peers)
        self._following = FollowWatch(limits.tracking_rad, bool(config.topics.echo))
        self._reconnects: int | None = None
        self._clock_steps = 0
        self._path_ends_s = self._old_path_ends_s = float("-inf")
        if config.topics.echo and not config.dry_run:
            client.subscribe(
                config.topics.echo, "trajectory_msgs/JointTrajectory", self._hear_trajectory
            )
            client.subscribe(STATE_TOPIC, "std_msgs/String", self._hear_guard)

    def warm_up(self) -> None:
        """Let the policy answer made-up pictures, see `warm_up`; raises what it raises."""
        started_s = self._clock()
        warm_up(self._policy, self._instruction, started_s)
        self.metrics.warm_up_s = self._clock() - started_s
        logger.info("policy is warm after %.2f s", self.metrics.warm_up_s)

    def stop(self) -> None:
        """End `run` soon; called from another thread (in a signal handler it could deadlock)."""
        self._stop.set()
        self._worker.interrupt()

    def run(
        self,
        duration_s: float | None = None,
        each_second: Callable[[Metrics], None] | None = None,
    ) -> None:
        """Drive until `stop`, or for `duration_s`; then bring the arm to rest.

        `each_second` gets the metrics about once a second. Raises PolicyFailingError.
        """
        started_s = reported_s = self._clock()
        self._pacer = Pacer(1 / self._config.rate_hz, started_s)
        try:
            while not self._stop.is_set():
                now_s = self._clock()
                if duration_s is not None and self._pacer.deadline_s - started_s >= duration_s:
                    break
                if now_s < self._pacer.deadline_s:
                    self._sleep(self._pacer.deadline_s - now_s)
                    continue
                self.tick()
                self.metrics.counters["skipped_ticks"] += self._pacer.advance(self._clock())
                if each_second is not None and self._clock() - reported_s >= 1:
                    reported_s = self._clock()
                    each_second(self.metrics)
        finally:
            self._come_to_rest()
            self._worker.close()

    def tick(self) -> Sent | Hold | None:
        """Do one deadline's work: at most one trajectory. None when `stop` came meanwhile."""
        now_s = self._clock()
        self.metrics.tick(now_s)
        self.metrics.lateness.add(now_s - self._pacer.aim_s)
        self._follow_instruction()
        self._notice_link(now_s)
        self._notice_clock(self._client.clocks(now_s).steps)
        self._measure_link(now_s)
        self._take_retimed()
        outcome = self._decide()
        if outcome is not None:
            self._journal.note(outcome, self._clock())
            self._rate.note(outcome)
            self._pacer.overdue_periods = 2 if self._rate.limit == "policy" else 1
        self._watch_arm(outcome)
        return outcome

    def _decide(self) -> Sent | Hold | None:
        asked, self._asked = self._asked, None
        if not self._client.link.connected:
            return Hold(HoldReason.LINK_DOWN, "not connected to rosbridge")
        if isinstance(asked, _Asked) and asked.job.has_begun:
            self._rate.took_frame(self._clock(), is_behind=True, was_there=True)
        else:
            asked = asked if isinstance(asked, Hold) else self._ask(self._next_frame())
        if isinstance(asked, Hold):
            return asked
        timeout_s = self._config.policy_timeout_s
        prediction = self._worker.answer(asked.job, timeout_s, self._meanwhile())
        if not isinstance(prediction, Prediction):
            return prediction
        self._policy_s = prediction.duration_s
        shaped = self._shape(asked.frame, prediction.chunk)
        if isinstance(shaped, Hold):
            return shaped
        return self._send(shaped, asked.frame, prediction.duration_s)

    def _ask(self, frame: EncodedFrame | None, begin_by_s: float | None = None) -> _Asked | Hold:
        """Ask the policy about `frame`, if nothing forbids to drive; with `begin_by_s`, after what
        it computes now."""
        joints = self._client.joints()
        hold = self._check_frame(frame) or self._check_robot(joints)
        if hold is not None:
            return hold
        assert frame is not None
        assert joints is not None
        self._used = frame
        image = self._decode(frame)
        if isinstance(image, Hold):
            return image
        now_s = self._clock()
        taken_s = now_s - self._client.frame_age_s(frame, now_s)
        observation = Observation(image, joints.state, self._instruction, taken_s)
        if begin_by_s is not None:
            return _Asked(frame, self._worker.ask_next(observation, begin_by_s))
        job = self._worker.ask(observation)
        return job if isinstance(job, Hold) else _Asked(frame, job)

    def _meanwhile(self) -> Meanwhile | None:
        """Return what to do while a policy that is slower than the period computes: shortly before
        its answer, ask it about the next frame, so that it goes on while this one's trajectory is
        made and sent."""
        lead_s = 2 * self._decode_s + AHEAD_S
        if not self._pacer.is_behind or self._policy_s <= lead_s:
            return None
        return Meanwhile(self._policy_s - lead_s, lambda: self._ask_ahead(lead_s))

    def _ask_ahead(self, lead_s: float) -> None:
        """Ask about the newest frame, `lead_s` before the policy should be free. What forbids it,
        the next tick finds itself, unless it is the frame, which is used up then."""
        now_s, due_s = self._clock(), self._pacer.next_deadline_s
        if now_s + lead_s < due_s:
            return
        frame = self._client.latest_frame()
        if frame is self._used or (frame and frame.arrival_s < due_s - self._pacer.grace_s):
            frame = self._client.wait_frame(frame, lead_s - self._decode_s) or frame
        if frame is None or frame is self._used:
            return
        asked = self._ask(frame, now_s + 2 * lead_s)
        if isinstance(asked, _Asked) or self._used is frame:
            self._asked = asked

    def _next_frame(self) -> EncodedFrame | None:
        """Return the newest frame not yet used, waiting a moment for one that is on its way."""
        pacer, frame = self._pacer, self._client.latest_frame()
        is_unused = frame is not None and frame is not self._used
        is_recent = frame is not None and frame.arrival_s >= pacer.deadline_s - pacer.grace_s
        patience_s = pacer.patience_s(self._clock(), is_unused)
        if patience_s > 0 and not (is_unused and is_recent):
            newer = self._client.wait_frame(frame, patience_s)
            frame = frame if newer is None else newer
        if frame is None or frame is self._used:
            return None
        self._rate.took_frame(self._clock(), pacer.is_behind, is_unused)
        self.metrics.counters["resyncs"] += pacer.observe(frame.arrival_s)
        return frame

    def _check_frame(self, frame: EncodedFrame | None) -> Hold | None:
        if frame is None:
            hold = check_frame(None, 0.0, self._used is not None, self._config.max_frame_age_s)
            return _explained(hold, self._client.link.no_frame_because)
        hold = self._check_clocks()
        if hold is not None:
            return hold
        age_s = self._client.frame_age_s(frame, self._clock())
        return check_frame(age_s, frame.stamp_s, True, self._config.max_frame_age_s)

    def _check_robot(self, joints: StampedJoints | None) -> Hold | None:
        """Return what forbids to drive, apart from the frame; looked at before the policy is asked
        and again afterwards."""
        now_s = self._clock()
        link = self._client.link
        if not link.connected:
            return Hold(HoldReason.LINK_DOWN, "the link went down meanwhile")
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
        hold = hold or self._learn_dialect(link) or self._check_clocks() or self._following.hold
        if hold is None and not self._config.dry_run:
            hold = self._peers.verdict(now_s)
        stopped = self._guard.stopped(now_s)
        if hold is None and stopped is not None:
            hold = Hold(HoldReason.STOPPED, f"{stopped}; `crane-x7-remote resume` lets it go on")
        return hold

    def _learn_dialect(self, link: LinkState) -> Hold | None:
        """Learn how to write to this server; a Hold as long as that is not known."""
        if link.ros_version is None:
            return Hold(HoldReason.ROS_VERSION_UNKNOWN, link.ros_version_doubt or "no stamp yet")
        has_actions = link.ros_version == 2 and "send_action_goal" not in link.unknown_operations
        dialect = Dialect(link.ros_version, has_actions)
        if dialect == self._dialect:
            return None
        self._dialect = dialect
        self._outgoing.gripper_goal_rad = None  # one sent otherwise may not have been understood
        topic = self._config.topics.gripper_goal
        way = "as action" if has_actions else f"on {topic}"
        logger.info("the robot speaks ROS %d; gripper goals go out %s", dialect.version, way)
        if topic and not has_actions and not self._config.dry_run:
            self._client.advertise(topic, GRIPPER_GOAL_TYPE)
        return None

    def _check_clocks(self) -> Hold | None:
        """Return what the robot's clocks forbid; without a joint state that is another matter."""
        if self._client.joints() is None:
            return None
        now_s = self._clock()
        report = self._client.clocks(now_s)
        self._notice_clock(report.steps)
        return check_clocks(report, now_s, self._config.max_frame_age_s, self._old_path_ends_s)

    def _joints_age_s(self, joints: StampedJoints, now_s: float) -> float:
        """Return the greater of both ages, by arrival and by the robot's stamp."""
        age_s = now_s - joints.arrival_s
        robot_s = self._client.robot_time(now_s)
        if robot_s is None or joints.stamp_s <= 0:
            return age_s
        return max(age_s, robot_s - joints.stamp_s)

    def _decode(self, frame: EncodedFrame) -> Image | Hold:
        started_s = self._clock()
        try:
            image = messages.decode_image(frame)
        except messages.MessageError as error:
            self.metrics.counters["refused_frames"] += 1
            return Hold(HoldReason.FRAME_UNREADABLE, str(error))
        self._decode_s = self._clock() - started_s
        self.metrics.decode.add(self._decode_s)
        self.metrics.counters["frames_used"] += 1
        return image

    def _shape(self, frame: EncodedFrame, chunk: object) -> Shaped | Hold:
        """Return the trajectory; the joints are read anew, because the policy took its time."""
        joints = self._client.joints()
        hold = self._check_robot(joints)
        moment = self._moment()
        if hold is not None or joints is None or moment is None:
            return hold or Hold(HoldReason.CLOCK_UNKNOWN, "the robot's time is not known yet")
        age_s = self._client.frame_age_s(frame, moment.now_s)
        stamp_s = answered_stamp_s(frame.stamp_s, age_s, moment.robot_s)
        return self._shaper.shape(chunk, stamp_s, joints, moment)

    def _moment(self) -> Moment | None:
        now_s = self._clock()
        robot_s = self._client.robot_time(now_s)
        if robot_s is None:
            return None
        is_guarded = self._guard.is_there(now_s)
        lead_s = self._delay.lead_s(self._config.validity_s, is_guarded)
        return Moment(now_s, robot_s, self._delay.typical_s, lead_s, is_guarded)

    def _send(self, shaped: Shaped, frame: EncodedFrame, policy_s: float) -> Sent | Hold:
        trajectory = shaped.trajectory
        late_s = self._clock() - shaped.leave_by_s
        if late_s > 0:
            return Hold(HoldReason.TOO_LATE, f"this machine stalled {late_s:.3f} s too long")
        if not self._config.dry_run:
            dialect = self._dialect
            assert dialect is not None  # _check_robot held otherwise
            operations, gripper_goal = self._outgoing.bundle(trajectory, shaped.target_rad, dialect)
            # Noted first: it may be heard on the network thread before `publish` returns.
            self._peers.published(
                trajectory.sequence, self._clock(), shaped.lead_s, shaped.expires_s
            )
            if not self._client.publish(operations, shaped.leave_by_s):
                self._peers.withdrawn(trajectory.sequence)
                return Hold(HoldReason.SEND_DROPPED, "the client could not take the trajectory")
            self._shaper.sent(shaped)
            self._following.sent(trajectory)
            self._path_ends_s = self._ends_s(trajectory)
            self.metrics.lead.add(shaped.lead_s)
            if gripper_goal is not None:
                self._outgoing.gripper_goal_rad = gripper_goal
                self.metrics.counters["gripper_goals"] += 1
        at_s = self._clock()
        return Sent(trajectory, frame, at_s, self._client.frame_age_s(frame, at_s), policy_s)

    def _ends_s(self, trajectory: Trajectory) -> float:
        """Return when the trajectory ends, on our clock."""
        now_s = self._clock()
        robot_s = self._client.robot_time(now_s)
        ends_s = trajectory.stamp_s + float(trajectory.time_from_start_s[-1])
        return now_s + (trajectory.valid_s if robot_s is None else ends_s - robot_s)

    def _follow_instruction(self) -> None:
        instruction = self._client.take_instruction()
        if instruction is not None and instruction != self._instruction:
            logger.info("instruction is now %r", instruction)
            self._instruction = self.metrics.instruction = instruction

    def _notice_link(self, now_s: float) -> None:
        """Start afresh behind a new link: the robot may have been restarted meanwhile."""
        link = self._client.link
        if not link.connected or link.reconnects == self._reconnects:
            return
        is_first, self._reconnects = self._reconnects is None, link.reconnects
        self._peers.link_came_up(now_s)
        self._guard.link_came_up()
        self._pacer.settle()
        self._asked = None
        self._shaper.forget()
        self._following.restart()
        self._dialect = None
        if not is_first:
            self._worker.reset_next()

    def _measure_link(self, now_s: float) -> None:
        """Feed the link's delay with pings and with trajectories that came back."""
        rtt_s = self._client.link.rtt_s
        if rtt_s is not None and rtt_s != self._rtt_s:
            self._rtt_s = rtt_s
            self._delay.observe(rtt_s, now_s)
        for echo_s in self._peers.take_echoes_s():
            self._delay.observe(echo_s, now_s)

    def _take_retimed(self) -> None:
        """Go on from what the guard made of our newest trajectory."""
        retimed, self._retimed = self._retimed, None
        if retimed is not None and self._shaper.retimed(retimed):
            self.metrics.counters["retimed"] += 1

    def _hear_guard(self, message: Mapping[str, Any]) -> None:
        """Note the guard's state; called on the client's thread."""
        self._guard.hear(message, self._clock())

    def _notice_clock(self, steps: int) -> None:
        """Start afresh behind a step of a clock: stamps before and after mean different times."""
        if steps != self._clock_steps:
            self._clock_steps = steps
            self._old_path_ends_s = self._path_ends_s
            self._shaper.forget()
            self._following.restart()

    def _watch_arm(self, outcome: Sent | Hold | None) -> None:
        """See whether the arm goes where it was sent; joints that are no ground to act on are no
        ground to judge it, either."""
        joints = self._client.joints()
        if isinstance(outcome, Hold) and outcome.reason in UNUSABLE_JOINTS:
            return
        if joints is not None and joints.stamp_s > 0:
            self._following.observe(joints.state, joints.stamp_s)

    def _hear_trajectory(self, message: Mapping[str, Any]) -> None:
        """Note whose trajectory came by; called on the client's thread."""
        header = message.get("header")
        frame_id = header.get("frame_id") if isinstance(header, Mapping) else None
        match = messages.FRAME_ID.fullmatch(frame_id) if isinstance(frame_id, str) else None
        if match is None:
            return
        now_s, is_ours = self._clock(), match["session"] == self._config.session
        if match["retimed"] and is_ours:
            with contextlib.suppress(messages.MessageError):
                self._retimed = messages.trajectory(message)
        self._peers.heard(match["session"], int(match["sequence"]), now_s)
        robot_s = self._client.robot_time(now_s)
        if is_ours and robot_s is not None:
            self._following.heard(int(match["sequence"]), robot_s)

    def _come_to_rest(self) -> None:
        """Brake the running trajectory now; where it has ended already, the arm holds."""
        self._notice_clock(self._client.clocks(self._clock()).steps)
        joints, moment = self._client.joints(), self._moment()
        dialect = self._dialect
        if joints is None or moment is None or dialect is None:
            return
        brake = self._shaper.brake(joints, moment)
        if brake is None:
            return
        deadline_s = moment.now_s + GOODBYE_S
        while not self._client.publish(self._outgoing.brake(brake, dialect)):
            if self._clock() >= deadline_s or not self._client.link.connected:
                logger.warning("could not send the last trajectory; the arm ends the one before")
                return
            time.sleep(0.005)
        logger.info("the arm comes to rest (sequence %d)", brake.sequence)


def _explained(hold: Hold | None, because: str | None) -> Hold | None:
    """Return the hold with what the client knows about its cause."""
    if hold is None or because is None:
        return hold
    return replace(hold, detail=f"{hold.detail}: {because}")
