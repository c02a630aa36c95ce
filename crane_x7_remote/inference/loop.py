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

import numpy as np

from crane_x7_remote.inference import peers as peers_module
from crane_x7_remote.inference.journal import Journal, Sent
from crane_x7_remote.inference.link_delay import LinkDelay
from crane_x7_remote.inference.metrics import Metrics
from crane_x7_remote.inference.outgoing import GRIPPER_GOAL_TYPE, Dialect, Outgoing, Topics
from crane_x7_remote.inference.pacing import Pacer
from crane_x7_remote.inference.peers import Peers
from crane_x7_remote.inference.safety import Hold, HoldReason, Limits, check_frame, check_joints
from crane_x7_remote.inference.shaping import Moment, Shaped, Shaper
from crane_x7_remote.inference.worker import PolicyWorker, Prediction
from crane_x7_remote.rosbridge import messages
from crane_x7_remote.rosbridge.messages import EncodedFrame, RosVersion, StampedJoints
from crane_x7_vla_rl.policies.base import Policy
from crane_x7_vla_rl.robot import HOME_RAD
from crane_x7_vla_rl.types import Image, JointState, Observation

logger = logging.getLogger(__name__)

GOODBYE_S = 0.2
"""How long the last trajectory may wait for its turn on the socket."""


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
        self._peers = Peers(config.session, config.listen_s, config.silence_s)
        self._delay = LinkDelay()
        self._rtt_s: float | None = None
        self._outgoing = Outgoing(config.topics, config.session)
        self._dialect: Dialect | None = None
        self._instruction = config.instruction
        self.metrics.instruction = config.instruction
        self._pacer = Pacer(1 / config.rate_hz, clock())
        self._used: EncodedFrame | None = None
        self._shaper = Shaper(config.session, config.validity_s, limits, self._peers)
        self._reconnects: int | None = None
        if config.topics.echo and not config.dry_run:
            client.subscribe(
                config.topics.echo, "trajectory_msgs/JointTrajectory", self._hear_trajectory
            )

    def warm_up(self) -> None:
        """Let the policy predict once on a made-up observation; raises what it raises."""
        started_s = self._clock()
        image = np.full((480, 640, 3), 128, dtype=np.uint8)
        joints = JointState(HOME_RAD, np.zeros_like(HOME_RAD))
        self._policy.predict([Observation(image, joints, self._instruction, started_s)])
        self._policy.reset()
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
        self.metrics.lateness.add(now_s - self._pacer.deadline_s)
        self._follow_instruction()
        self._notice_link(now_s)
        self._measure_link(now_s)
        self._take_retimed()
        outcome = self._decide()
        if outcome is not None:
            self._journal.note(outcome, self._clock())
        return outcome

    def _decide(self) -> Sent | Hold | None:
        if not self._client.link.connected:
            return Hold(HoldReason.LINK_DOWN, "not connected to rosbridge")
        frame = self._next_frame()
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
        prediction = self._worker.predict(observation, self._config.policy_timeout_s)
        if not isinstance(prediction, Prediction):
            return prediction
        shaped = self._shape(frame, prediction.chunk)
        if isinstance(shaped, Hold):
            return shaped
        return self._send(shaped, frame, prediction.duration_s)

    def _next_frame(self) -> EncodedFrame | None:
        """Return the newest frame not yet used, waiting a moment for one that is on its way."""
        frame = self._client.latest_frame()
        soon_s = self._pacer.deadline_s + self._pacer.grace_s - self._clock()
        is_recent = (
            frame is not None and frame.arrival_s >= self._pacer.deadline_s - self._pacer.grace_s
        )
        if soon_s > 0 and (frame is self._used or not is_recent):
            newer = self._client.wait_frame(frame, soon_s)
            frame = frame if newer is None else newer
        if frame is None or frame is self._used:
            return None
        self.metrics.counters["resyncs"] += self._pacer.observe(frame.arrival_s)
        return frame

    def _check_frame(self, frame: EncodedFrame | None) -> Hold | None:
        if frame is None:
            hold = check_frame(None, 0.0, self._used is not None, self._config.max_frame_age_s)
            return _explained(hold, self._client.link.no_frame_because)
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
        hold = check_joints(state, age_s, self._limits, self._config.max_frame_age_s)
        if hold is not None and hold.reason in (HoldReason.NO_JOINTS, HoldReason.JOINTS_STALE):
            hold = _explained(hold, link.no_joints_because)
        hold = hold or self._learn_dialect(link)
        if hold is None and not self._config.dry_run:
            hold = self._peers.verdict(now_s)
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
        self.metrics.decode.add(self._clock() - started_s)
        self.metrics.counters["frames_used"] += 1
        return image

    def _shape(self, frame: EncodedFrame, chunk: object) -> Shaped | Hold:
        """Return the trajectory; the joints are read anew, because the policy took its time."""
        joints = self._client.joints()
        hold = self._check_robot(joints)
        moment = self._moment()
        if hold is not None or joints is None or moment is None:
            return hold or Hold(HoldReason.LINK_DOWN, "the robot's time is not known yet")
        return self._shaper.shape(chunk, frame.stamp_s, joints, moment)

    def _moment(self) -> Moment | None:
        now_s = self._clock()
        robot_s = self._client.robot_time(now_s)
        if robot_s is None:
            return None
        lead_s = self._delay.lead_s(self._config.validity_s)
        return Moment(now_s, robot_s, self._delay.typical_s, lead_s)

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
            self.metrics.lead.add(shaped.lead_s)
            if gripper_goal is not None:
                self._outgoing.gripper_goal_rad = gripper_goal
                self.metrics.counters["gripper_goals"] += 1
        at_s = self._clock()
        return Sent(trajectory, frame, at_s, self._client.frame_age_s(frame, at_s), policy_s)

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
        self._pacer.link_came_up()
        self._shaper.forget()
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

    def _hear_trajectory(self, message: Mapping[str, Any]) -> None:
        """Note whose trajectory came by; called on the client's thread."""
        header = message.get("header")
        frame_id = header.get("frame_id") if isinstance(header, Mapping) else None
        match = messages.FRAME_ID.fullmatch(frame_id) if isinstance(frame_id, str) else None
        if match is None:
            return
        if match["retimed"] and match["session"] == self._config.session:
            with contextlib.suppress(messages.MessageError):
                self._retimed = messages.trajectory(message)
        self._peers.heard(match["session"], int(match["sequence"]), self._clock())

    def _come_to_rest(self) -> None:
        """Brake the running trajectory now; where it has ended already, the arm holds."""
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
