"""Runs the policy on its own thread, so that a stalled policy cannot stall the loop.

One observation → its chunk within a timeout; a late result is discarded. The next observation may
wait while the policy computes, so that a policy that is the slowest part is never idle.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_vla_rl.policies.base import Policy
from crane_x7_vla_rl.types import Observation

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """One observation for the policy, and its result."""

    observation: Observation
    reset_first: bool = False
    begin_by_s: float = float("inf")
    """Latest start: if the policy has not begun by then, the observation is dropped as too old."""
    has_begun: bool = False
    is_done: bool = False
    result: object = None
    duration_s: float = 0.0
    error: BaseException | None = None


@dataclass(frozen=True)
class Meanwhile:
    """What the waiting thread does once, if the policy has not answered after this time."""

    after_s: float
    work: Callable[[], object]


@dataclass(frozen=True, eq=False)
class Prediction:
    """The policy's unchecked return value, and how long it took."""

    chunk: object
    duration_s: float


class PolicyWorker:
    """Runs `policy` on a daemon thread, which is abandoned if the policy never returns."""

    def __init__(self, policy: Policy, clock: Callable[[], float]) -> None:
        self._policy = policy
        self._clock = clock
        self._changed = threading.Condition()
        self._job: Job | None = None
        self._next: Job | None = None
        self._closed = False
        self._interrupted = False
        self._reset_pending = False
        self._thread = threading.Thread(target=self._run, name="policy", daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether an earlier observation still occupies the policy."""
        with self._changed:
            return self._job is not None

    def reset_next(self) -> None:
        """Reset the policy before its next prediction."""
        self._reset_pending = True

    def predict(self, observation: Observation, timeout_s: float) -> Prediction | Hold | None:
        """Return the policy's prediction, or a Hold; None if `interrupt` came first."""
        job = self.ask(observation)
        return job if isinstance(job, Hold) else self.answer(job, timeout_s)

    def ask(self, observation: Observation) -> Job | Hold:
        """Start the policy; a Hold while it still computes."""
        job = Job(observation, self._reset_pending, has_begun=True)
        with self._changed:
            if self._job is not None:
                return Hold(HoldReason.POLICY_BUSY, "policy still computes an earlier prediction")
            self._reset_pending = False
            self._job = job
            self._changed.notify_all()
        return job

    def ask_next(self, observation: Observation, begin_by_s: float) -> Job:
        """Start the policy when its current prediction is done, unless that is after `begin_by_s`;
        whether it has started is known when `answer` has returned the current prediction."""
        job = Job(observation, begin_by_s=begin_by_s)
        with self._changed:
            self._next = job if self._job is not None else None
        return job

    def answer(
        self, job: Job, timeout_s: float, meanwhile: Sequence[Meanwhile] = ()
    ) -> Prediction | Hold | None:
        """Wait for the prediction that `ask` or `ask_next` started; returns as `predict` does."""
        waited_s = 0.0
        for due in sorted(meanwhile, key=lambda due: due.after_s):
            until_s = min(max(due.after_s, waited_s), timeout_s)
            if self._wait(job, until_s - waited_s):
                break
            waited_s = until_s
            due.work()
        self._wait(job, timeout_s - waited_s)
        with self._changed:
            if not job.is_done:
                self._next = None
                if self._interrupted:
                    return None
                return Hold(HoldReason.POLICY_TIMEOUT, f"policy took longer than {timeout_s:g} s")
        if job.error is not None:
            return Hold(
                HoldReason.POLICY_RAISED, f"policy raised {type(job.error).__name__}: {job.error}"
            )
        return Prediction(job.result, job.duration_s)

    def _wait(self, job: Job, timeout_s: float) -> bool:
        """Return whether `job` is done, or `interrupt` was called, within `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: job.is_done or self._interrupted, timeout_s)

    def interrupt(self) -> None:
        """Make a waiting `predict` return None; called from another thread."""
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()

    def resume(self) -> None:
        """Answer again after `interrupt`."""
        with self._changed:
            self._interrupted = False

    def close(self, timeout_s: float = 1.0) -> None:
        """End the thread; a thread that is stuck in the policy is abandoned."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.warning("the policy is still computing; its thread is abandoned")

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._job is not None or self._closed)
                if self._closed:
                    return
                job = self._job
            assert job is not None
            started_s = self._clock()
            try:
                job.result = self._answer(job)
            except BaseException as error:  # any error: the loop holds and counts it
                job.error = error
                logger.debug("policy raised", exc_info=True)
            job.duration_s = self._clock() - started_s
            with self._changed:
                job.is_done = True
                self._job, self._next = self._next, None
                if self._job is not None and self._clock() > self._job.begin_by_s:
                    self._job = None
                if self._job is not None:
                    self._job.has_begun = True
                self._changed.notify_all()

    def _answer(self, job: Job) -> object:
        if job.reset_first:
            self._policy.reset()
        chunks = self._policy.predict([job.observation])
        is_one = isinstance(chunks, list) and len(chunks) == 1
        return chunks[0] if is_one else chunks  # the safety check refuses anything but a chunk
