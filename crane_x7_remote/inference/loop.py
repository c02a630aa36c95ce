"""The inference loop: at each deadline, one camera frame → one checked trajectory, or a `Hold`.

`InferenceLoop._decide` processes a frame from top to bottom. The loop runs on the thread that calls
`run`; the client and the policy run on their own threads.

Legend: H, W image; T steps; 8 joints in the order of `robot.JOINT_NAMES`, rad.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable

from crane_x7_remote.inference.camera_watch import CameraWatch
from crane_x7_remote.inference.config import LoopConfig
from crane_x7_remote.inference.feed import Tick
from crane_x7_remote.inference.following import FollowWatch
from crane_x7_remote.inference.gripper import LaterGoals
from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_remote.inference.intake import Asked, Gates, Intake
from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.link.clock_check import answered_stamp_s
from crane_x7_remote.inference.link.echoes import Echoes
from crane_x7_remote.inference.link.peers import Peers
from crane_x7_remote.inference.link.ports import RobotClient
from crane_x7_remote.inference.metrics import LoopMetrics
from crane_x7_remote.inference.outgoing import Bundle, Outgoing
from crane_x7_remote.inference.pacing import Pacer
from crane_x7_remote.inference.rate import RateWatch
from crane_x7_remote.inference.ready import UNUSABLE_JOINTS, Readiness
from crane_x7_remote.inference.shaping import Moment, Shaped, TrajectoryPlanner
from crane_x7_remote.inference.task import StatusReport, Task
from crane_x7_remote.inference.tick_log import Sent, TickLog
from crane_x7_remote.inference.warm_up import warm_up
from crane_x7_remote.inference.worker import Meanwhile, PolicyWorker, Prediction
from crane_x7_remote.inference.wrist_camera import WristCamera
from crane_x7_remote.rosbridge import protocol
from crane_x7_remote.rosbridge.frames import EncodedFrame
from crane_x7_remote.rosbridge.topics import STATUS_TOPIC
from crane_x7_vla_rl.log_text import shown
from crane_x7_vla_rl.policies.base import Policy
from crane_x7_vla_rl.types import Trajectory

logger = logging.getLogger(__name__)

LONGEST_SLEEP_S = 0.2
"""Longest sleep between two ticks: a new task is answered within this time."""
GOODBYE_S = 0.2
"""How long the last trajectory may wait for the socket."""
UNCONFIRMED_S = 0.5
"""How long it may wait, at the end of `run`, for one that is still under way."""
RETRY_S = 0.005


class InferenceLoop:
    """Drives one robot through `client` with `policy`."""

    def __init__(
        self,
        client: RobotClient,
        policy: Policy,
        config: LoopConfig,
        limits: Limits,
        clock: Callable[[], float],
        sleep: Callable[[float], object] | None = None,
        observe: Callable[[Tick], None] | None = None,
        metrics: LoopMetrics | None = None,
    ) -> None:
        """`clock` gives monotonic seconds; `sleep` defaults to one that `stop` interrupts.

        `observe` gets each tick on the loop's thread, after the tick's work: it must not wait.
        `metrics` are those to count in; None: new ones.
        """
        self._client = client
        self._policy = policy
        self._config = config
        self._limits = limits
        self._clock = clock
        self._stop = threading.Event()
        self._sleep = sleep or self._stop.wait
        self._pause = sleep or time.sleep
        self._observe = observe
        self.metrics = metrics or LoopMetrics(config.session, config.rate_hz)
        self._tick_log = TickLog(self.metrics, config.policy_failing_s, config.dry_run)
        self._worker = PolicyWorker(policy, clock)
        self._peers = Peers(config.session, config.listen_s, config.silence_s)
        self._outgoing = Outgoing(config.topics, config.session)
        self._gripper = LaterGoals(client, self._outgoing, clock)
        self._task = Task(policy, config.instruction, config.say_hint)
        self.metrics.instruction = config.instruction
        self._status = StatusReport(self._task, self.metrics, config.dry_run)
        self._pacer = Pacer(1 / config.rate_hz, clock())
        self._rate = RateWatch(self.metrics)
        self._decided_on: Asked | None = None
        """What the present tick is about, once the policy has it."""
        self._planner = TrajectoryPlanner(config.session, config.validity_s, limits, self._peers)
        self._following = FollowWatch(limits.tracking_rad, bool(config.topics.echo))
        self._reconnects: int | None = None
        self._echoes = Echoes(client, config.session, self._peers, self._following, clock)
        self._ready = Readiness(client, config, limits, self._echoes, clock, self._forget_path)
        camera = CameraWatch(client, policy, config.camera_pose, self._worker.reset_next)
        camera.listen()
        self._wrist = WristCamera(client, policy, config, clock)
        gates = Gates(self._ready, camera, self._wrist)
        self._intake = Intake(
            client, self._worker, self._task, gates, self._pacer, self._rate, self.metrics, clock
        )
        if config.topics.echo and not config.dry_run:
            self._echoes.listen(config.topics.echo)
        if config.topics.gripper_action and not config.dry_run:
            client.hear_results(self._outgoing.hear_result)

    def warm_up(self) -> None:
        """Run the policy on synthetic images, see `warm_up`; raises what that raises."""
        started_s = self._clock()
        warm_up(self._policy, self._task.instruction, started_s)
        self.metrics.warm_up_s = self._clock() - started_s
        logger.info("policy warmed up in %.2f s", self.metrics.warm_up_s)

    def stop(self) -> None:
        """End `run` soon; called from another thread (in a signal handler it could deadlock)."""
        self._stop.set()
        self._worker.interrupt()

    def run(
        self,
        duration_s: float | None = None,
        each_second: Callable[[LoopMetrics], None] | None = None,
    ) -> None:
        """Drive until `stop`, or for `duration_s`; then stop the arm.

        `each_second` gets the metrics about once a second. Raises PolicyFailingError.
        """
        started_s = reported_s = self._clock()
        self._pacer.restart(started_s)
        try:
            while not self._stop.is_set():
                now_s = self._clock()
                if duration_s is not None and self._pacer.deadline_s - started_s >= duration_s:
                    break
                if now_s < self._pacer.deadline_s:
                    next_s = min(self._pacer.deadline_s, self._gripper.next_s)
                    self._sleep(min(max(next_s - now_s, 0.0), LONGEST_SLEEP_S))
                    self._send_gripper()
                    self._answer()
                    continue
                self.tick()
                self.metrics.counters["skipped_ticks"] += self._pacer.advance(self._clock())
                if each_second is not None and self._clock() - reported_s >= 1:
                    reported_s = self._clock()
                    each_second(self.metrics)
        finally:
            self._come_to_rest(UNCONFIRMED_S)
            self._worker.close()

    def tick(self) -> Sent | Hold | None:
        """Do one deadline's work: send at most one trajectory. None if `stop` came meanwhile."""
        now_s = self._clock()
        self.metrics.tick(now_s)
        self.metrics.lateness.add(now_s - self._pacer.aim_s)
        self._follow_instruction()
        self._task.remind(now_s)
        self._notice_link(now_s)
        self._ready.notice_clock(self._client.clocks(now_s).steps)
        self._echoes.measure(now_s)
        self._take_retimed()
        self._notice_stop()
        outcome = self._decide()
        if outcome is not None:
            self._tick_log.note(outcome, self._clock())
            self._rate.note(outcome)
            self._pacer.overdue_periods = 2 if self._rate.limit == "policy" else 1
        self._watch_arm(outcome)
        self._tell_status()
        if self._observe is not None and outcome is not None:
            self._observe(self._observed(outcome))
        return outcome

    def _observed(self, outcome: Sent | Hold) -> Tick:
        client, at_s = self._client, self._clock()
        used = self._decided_on
        recent = client.recent_joints()
        return Tick(
            number=self.metrics.counters["ticks"],
            at_s=at_s,
            robot_s=client.robot_time(at_s),
            instruction=self._task.instruction,
            frame=client.latest_frame() if used is None else used.frame,
            is_frame_used=used is not None,
            joints=recent[-1] if recent else None,
            outcome=outcome,
            wrist_frame=self._wrist.newest() if used is None or used.wrist is None else used.wrist,
            recent_joints=recent,
        )

    def _decide(self) -> Sent | Hold | None:
        self._decided_on = None
        if not self._client.link.connected:
            self._intake.forget()
            return Hold(HoldReason.LINK_DOWN, "not connected to rosbridge")
        asked = self._intake.take()
        if isinstance(asked, Hold):
            return asked
        self._decided_on = asked
        timeout_s = self._config.policy_timeout_s
        prediction = self._worker.answer(asked.job, timeout_s, self._meanwhile())
        if not isinstance(prediction, Prediction):
            return prediction
        self._intake.policy_s = prediction.duration_s
        shaped = self._shape(asked.frame, prediction.chunk)
        if isinstance(shaped, Hold):
            return shaped
        return self._send(shaped, asked.frame, prediction.duration_s)

    def _meanwhile(self) -> list[Meanwhile]:
        """Return what to do while the policy computes: send the gripper's goals, and what `Intake`
        does for the next prediction."""
        now_s = self._clock()
        work = [
            Meanwhile(max(at_s - now_s, 0.0), self._send_gripper) for at_s in self._gripper.times_s
        ]
        return work + self._intake.meanwhile()

    def _send_gripper(self) -> None:
        self._notice_stop()
        if self._is_link_new():
            self._gripper.cancel()
        self.metrics.counters["gripper_goals"] += self._gripper.send_due()

    def _shape(self, frame: EncodedFrame, chunk: object) -> Shaped | Hold:
        """Return the trajectory; the joints are read again, as they moved while the policy ran."""
        joints = self._client.joints()
        hold = self._ready.robot(joints)
        moment = self._moment()
        if hold is not None or joints is None or moment is None:
            return hold or Hold(HoldReason.CLOCK_UNKNOWN, "the robot's time is still unknown")
        age_s = self._client.frame_age_s(frame, moment.now_s)
        stamp_s = answered_stamp_s(frame.stamp_s, age_s, moment.robot_s)
        return self._planner.shape(chunk, stamp_s, joints, moment)

    def _moment(self) -> Moment | None:
        now_s = self._clock()
        robot_s = self._client.robot_time(now_s)
        if robot_s is None:
            return None
        is_guarded = self._echoes.guard.is_there(now_s)
        lead_s = self._echoes.delay.lead_s(self._config.validity_s, is_guarded)
        return Moment(now_s, robot_s, self._echoes.delay.typical_s, lead_s, is_guarded)

    def _send(self, shaped: Shaped, frame: EncodedFrame, policy_s: float) -> Sent | Hold:
        trajectory = shaped.trajectory
        late_s = self._clock() - shaped.leave_by_s
        if late_s > 0:
            return Hold(
                HoldReason.TOO_LATE, f"this machine stalled: trajectory {late_s:.3f} s late"
            )
        if self._is_link_new():
            return Hold(HoldReason.LINK_DOWN, "the link is another than before the prediction")
        if not self._config.dry_run:
            followed = shaped.followed
            if followed is not None and self._peers.is_lost(followed.sequence):
                return Hold(
                    HoldReason.SEND_DROPPED, "the trajectory that this one continues does not run"
                )
            dialect = self._ready.dialect
            assert dialect is not None  # Readiness.robot held otherwise
            self._notice_stop()
            bundle = self._outgoing.bundle(trajectory, shaped.target_rad, dialect)
            # Noted first: the network thread may hear or drop it before `publish` returns.
            sequence = trajectory.sequence
            self._peers.published(sequence, self._clock(), shaped.lead_s, shaped.expires_s)
            withdraw = functools.partial(self._withdraw, sequence, bundle)
            if not self._client.publish(bundle.operations, shaped.leave_by_s, withdraw):
                withdraw()
                return Hold(HoldReason.SEND_DROPPED, "the client did not accept the trajectory")
            self._planner.sent(shaped)
            self._following.sent(trajectory)
            self._ready.sent(self._ends_s(trajectory))
            self._outgoing.sent(bundle)
            self._gripper.plan(shaped, dialect)
            self.metrics.lead.add(shaped.lead_s)
            self.metrics.counters["gripper_goals"] += bundle.gripper_goal_rad is not None
        at_s = self._clock()
        age_s = self._client.frame_age_s(frame, at_s)
        return Sent(trajectory, shaped.target_rad, frame, at_s, age_s, policy_s)

    def _withdraw(self, sequence: int, bundle: Bundle) -> None:
        """Note that a bundle was dropped; may be called from another thread."""
        self._peers.withdrawn(sequence)
        self._outgoing.goal_dropped(bundle)

    def _ends_s(self, trajectory: Trajectory) -> float:
        """Return when the trajectory ends, on our clock."""
        now_s = self._clock()
        robot_s = self._client.robot_time(now_s)
        ends_s = trajectory.stamp_s + float(trajectory.time_from_start_s[-1])
        return now_s + (trajectory.valid_s if robot_s is None else ends_s - robot_s)

    def _follow_instruction(self) -> None:
        """Adopt a new task, if any, and answer its sender, who waits."""
        instruction = self._client.take_instruction()
        if instruction is None:
            return
        if instruction != self._task.instruction:
            logger.info('the task is now "%s"', shown(instruction))
            self.metrics.instruction = instruction
            self._task.take(instruction)
        self._status.ask()

    def _answer(self) -> None:
        """Answer a new task between two ticks, which may be seconds apart."""
        self._follow_instruction()
        self._tell_status()

    def _tell_status(self) -> None:
        status = self._status.due(self._clock())
        if status is not None:
            self._client.tell(protocol.publish(STATUS_TOPIC, status.message()))

    def _is_link_new(self) -> bool:
        """Whether the connection is another than at the last `_notice_link`."""
        return self._client.link.reconnects != self._reconnects

    def _notice_link(self, now_s: float) -> None:
        """Forget the path after a reconnect: the robot may have been restarted meanwhile."""
        link = self._client.link
        if not link.connected or not self._is_link_new():
            return
        is_first, self._reconnects = self._reconnects is None, link.reconnects
        self._peers.link_came_up(now_s)
        self._echoes.guard.link_came_up()
        self._pacer.settle()
        self._intake.forget()
        self._forget_path()
        self._ready.link_came_up()
        self._outgoing.link_came_up()
        if not is_first:
            self._worker.reset_next()

    def _notice_stop(self) -> None:
        """Forget the gripper's goals if the guard was stopped: it may have refused them."""
        if self._echoes.take_stop():
            self._gripper.cancel()
            self._outgoing.forget_goal()

    def _take_retimed(self) -> None:
        """Continue from the newest trajectory as re-timed by the guard."""
        retimed = self._echoes.take_retimed()
        if retimed is not None and self._planner.retimed(retimed):
            self.metrics.counters["retimed"] += 1

    def _forget_path(self) -> None:
        """Start the next trajectory from the measured state."""
        self._planner.forget()
        self._gripper.cancel()
        self._following.restart()

    def _watch_arm(self, outcome: Sent | Hold | None) -> None:
        """Check whether the arm follows its path, unless the joints cannot be trusted."""
        joints = self._client.joints()
        if isinstance(outcome, Hold) and outcome.reason in UNUSABLE_JOINTS:
            return
        if joints is not None and joints.stamp_s > 0:
            self._following.observe(joints.state, joints.stamp_s)

    def _come_to_rest(self, unconfirmed_s: float = 0.0) -> None:
        """Brake the running trajectory now; if it has ended already, the arm holds.

        `unconfirmed_s`: how long to wait for a trajectory that is still under way.
        """
        self._gripper.cancel()
        self._ready.notice_clock(self._client.clocks(self._clock()).steps)
        began_s = self._clock()
        while True:
            hold = self._brake()
            if hold is None:
                return
            is_unconfirmed = hold.reason is HoldReason.UNCONFIRMED
            patience_s = unconfirmed_s if is_unconfirmed else GOODBYE_S
            if self._clock() - began_s >= patience_s or not self._client.link.connected:
                if patience_s:
                    logger.warning(
                        "could not send the braking trajectory, %s: %s; the arm finishes the"
                        " previous one",
                        hold.reason,
                        hold.detail,
                    )
                return
            self._pause(RETRY_S)

    def _brake(self) -> Hold | None:
        """Send the path to rest from where the arm is now; None if it was sent, or none needed."""
        self._notice_link(self._clock())
        joints, moment = self._client.joints(), self._moment()
        dialect = self._ready.dialect
        if joints is None or moment is None or dialect is None:
            return None
        brake = self._planner.brake(joints, moment)
        if brake is None or isinstance(brake, Hold):
            return brake
        leave_by_s = moment.leave_by_s(moment.lead_s)
        operations = self._outgoing.brake(brake, dialect)
        if not self._client.publish(operations, leave_by_s, _warn_of_no_brake):
            return Hold(HoldReason.SEND_DROPPED, "the client did not accept it")
        self._planner.braked(brake)
        self._following.restart()
        logger.info("braking the arm to rest (sequence %d)", brake.sequence)
        return None


def _warn_of_no_brake() -> None:
    logger.warning(
        "the braking trajectory could not leave in time; the arm finishes the one before"
    )
