"""What the policy computes next: the robot's newest frame → an observation at the policy or a Hold.

Called on the loop's thread. A policy that is slower than the period gets its next frame shortly
before it is free, so that it continues while the loop makes and sends this frame's trajectory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from crane_x7_remote.inference.camera_watch import CameraWatch
from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_remote.inference.link.ports import RobotClient
from crane_x7_remote.inference.metrics import LoopMetrics
from crane_x7_remote.inference.pacing import Pacer
from crane_x7_remote.inference.rate import RateWatch
from crane_x7_remote.inference.ready import Readiness
from crane_x7_remote.inference.task import Task
from crane_x7_remote.inference.worker import Job, Meanwhile, PolicyWorker
from crane_x7_remote.inference.wrist_camera import WristCamera
from crane_x7_remote.rosbridge import frames, messages
from crane_x7_remote.rosbridge.frames import EncodedFrame
from crane_x7_vla_rl.types import Image, Observation

AHEAD_S = 0.002
"""A slow policy's next frame is taken this much before decoding must start: waits are not exact."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A frame that was passed to the policy."""

    frame: EncodedFrame
    job: Job
    before: EncodedFrame | None
    """The frame used before it."""
    wrist: EncodedFrame | None = None
    """The wrist camera's frame that was passed with it."""


@dataclass(frozen=True)
class Gates:
    """What can forbid that the policy gets a frame."""

    ready: Readiness
    camera: CameraWatch
    wrist: WristCamera


class Intake:
    """Passes one loop's frames to its policy, each once."""

    def __init__(
        self,
        client: RobotClient,
        worker: PolicyWorker,
        task: Task,
        gates: Gates,
        pacer: Pacer,
        rate: RateWatch,
        metrics: LoopMetrics,
        clock: Callable[[], float],
    ) -> None:
        """`clock` gives monotonic seconds."""
        self._client, self._worker, self._task, self._gates = client, worker, task, gates
        self._pacer, self._rate, self._metrics, self._clock = pacer, rate, metrics, clock
        self.policy_s = 0.0
        """How long the last prediction took; the loop writes it."""
        self._decode_s = 0.0
        self._ahead: Asked | Hold | None = None
        """The frame passed to the policy in advance; the next tick uses its prediction."""
        self._used: EncodedFrame | None = None

    def forget(self) -> None:
        """Do not use what was passed to the policy in advance."""
        self._ahead = None

    def serve(self, worker: PolicyWorker, pacer: Pacer) -> None:
        """Pass frames to another worker from now on, at the deadlines of `pacer`."""
        self._worker, self._pacer = worker, pacer
        self.forget()

    def take(self) -> Asked | Hold:
        """Return what the policy computes for this tick: what it got in advance, or the frame that
        is due now."""
        asked, self._ahead = self._ahead, None
        if isinstance(asked, Asked) and asked.job.has_begun:
            self._rate.took_frame(self._clock(), is_behind=True, was_there=True)
            return asked
        if isinstance(asked, Asked):  # the policy was free too late for it
            self._used = asked.before
        return asked if isinstance(asked, Hold) else self._ask(self._next_frame())

    def meanwhile(self) -> list[Meanwhile]:
        """Return what to do while the policy computes: shortly before it answers, if it is slower
        than the period, pass it the next frame."""
        lead_s = 2 * self._decode_s + AHEAD_S
        if not self._pacer.is_behind or self.policy_s <= lead_s:
            return []
        return [Meanwhile(self.policy_s - lead_s, lambda: self._ask_ahead(lead_s))]

    def _ask(self, frame: EncodedFrame | None, begin_by_s: float | None = None) -> Asked | Hold:
        """Pass `frame` to the policy, if nothing forbids driving; with `begin_by_s`, after the
        prediction that it computes now."""
        joints = self._client.joints()
        ready = self._gates.ready
        hold = ready.frame(frame, self._used is not None) or ready.robot(joints)
        if hold is not None:
            return hold
        assert frame is not None
        assert joints is not None
        wrist = self._gates.wrist.take(frame)
        if isinstance(wrist, Hold):
            return wrist
        before, self._used = self._used, frame
        seen = self._decode(frame, wrist)
        if isinstance(seen, Hold):
            return seen
        image, more = seen
        hold = self._gates.camera.hold(image)
        if hold is not None:
            return hold
        now_s = self._clock()
        taken_s = now_s - self._client.frame_age_s(frame, now_s)
        observation = Observation(image, joints.state, self._task.instruction, taken_s, more)
        if begin_by_s is not None:
            return Asked(frame, self._worker.ask_next(observation, begin_by_s), before, wrist)
        job = self._worker.ask(observation)
        return job if isinstance(job, Hold) else Asked(frame, job, before, wrist)

    def _ask_ahead(self, lead_s: float) -> None:
        """Pass on the newest frame, `lead_s` before the policy should be free. The next tick checks
        again what forbids this, except for the frame, which then counts as used."""
        now_s, due_s = self._clock(), self._pacer.next_deadline_s
        if now_s + lead_s < due_s:
            return
        frame = self._client.latest_frame()
        if frame is self._used or (frame and frame.arrival_s < due_s - self._pacer.grace_s):
            frame = self._client.wait_frame(frame, lead_s - self._decode_s) or frame
        if frame is None or frame is self._used:
            return
        asked = self._ask(frame, now_s + 2 * lead_s)
        if isinstance(asked, Asked) or self._used is frame:
            self._ahead = asked

    def _next_frame(self) -> EncodedFrame | None:
        """Return the newest unused frame; wait briefly for one that is due."""
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
        self._metrics.counters["resyncs"] += pacer.observe(frame.arrival_s)
        return frame

    def _decode(
        self, frame: EncodedFrame, wrist: EncodedFrame | None
    ) -> tuple[Image, dict[str, Image]] | Hold:
        started_s = self._clock()
        more = self._gates.wrist.images(wrist)
        try:
            image = frames.decode_image(frame)
        except messages.MessageError as error:
            more = Hold(HoldReason.FRAME_UNREADABLE, str(error))
        if isinstance(more, Hold):
            self._metrics.counters["refused_frames"] += 1
            return more
        self._decode_s = self._clock() - started_s
        self._metrics.decode.add(self._decode_s)
        self._metrics.counters["frames_used"] += 1
        return image, more
