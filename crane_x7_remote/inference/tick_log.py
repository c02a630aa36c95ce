"""Outcomes of ticks. `Sent` or `Hold` → counts in the metrics, a log line per change of state.

Raises PolicyFailingError when the policy gave no usable prediction for long.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from crane_x7_remote.errors import PolicyFailingError
from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_remote.inference.metrics import LoopMetrics
from crane_x7_remote.rosbridge.frames import EncodedFrame
from crane_x7_vla_rl.types import Array, Trajectory

logger = logging.getLogger(__name__)

DRIVING = "driving"
DRY_RUN = "dry run"
POLICY_HOLDS = frozenset(
    {
        HoldReason.POLICY_RAISED,
        HoldReason.POLICY_TIMEOUT,
        HoldReason.POLICY_BUSY,
        HoldReason.POLICY_OUTPUT,
    }
)
LOG_AGAIN_S = 5.0
"""A state that alternates is logged at most this often."""
QUIET_S = 0.5
"""A camera that is slower than the loop is normal; it is logged when silent for this long."""


@dataclass(frozen=True, eq=False)
class Sent:
    """A trajectory that was sent, or would have been without dry run."""

    trajectory: Trajectory
    target_rad: Array
    """(8,): the step of the chunk that is due next."""
    frame: EncodedFrame
    at_s: float
    frame_age_s: float
    """At that time, the larger of the ages by both clocks."""
    policy_s: float


class TickLog:
    """Counts and logs the outcomes of one loop."""

    def __init__(self, metrics: LoopMetrics, policy_failing_s: float, dry_run: bool) -> None:
        self.metrics = metrics
        self._policy_failing_s = policy_failing_s
        self._driving = DRY_RUN if dry_run else DRIVING
        self._failing_since_s: float | None = None
        self._state_since_s = 0.0
        self._logged: dict[str, float] = {}

    def note(self, outcome: Sent | Hold, now_s: float) -> None:
        """Process one tick's outcome. Raises PolicyFailingError."""
        if isinstance(outcome, Hold):
            self.metrics.holds[outcome.reason] += 1
            self._log(outcome.reason, outcome.detail, now_s)
        else:
            self._count(outcome)
            self._log(self._driving, f"sequence {outcome.trajectory.sequence}", now_s)
        self._watch_policy(outcome, now_s)

    def _count(self, sent: Sent) -> None:
        metrics, latency_s = self.metrics, sent.at_s - sent.frame.arrival_s
        metrics.latency.add(latency_s)
        metrics.latency_without_policy.add(latency_s - sent.policy_s)
        metrics.policy.add(sent.policy_s)
        metrics.frame_age.add(sent.frame_age_s)
        metrics.trajectory(sent.at_s)

    def _log(self, state: str, detail: str, now_s: float) -> None:
        if state != self.metrics.state:
            self.metrics.state, self._state_since_s = state, now_s
        elif state != HoldReason.NO_NEW_FRAME:
            return
        lasted_s = now_s - self._state_since_s
        if state == HoldReason.NO_NEW_FRAME and lasted_s < QUIET_S:
            return
        if now_s - self._logged.get(state, float("-inf")) < LOG_AGAIN_S + lasted_s:
            return
        self._logged[state] = now_s
        if state == self._driving:
            logger.info("%s (%s)", state, detail)
        elif state == HoldReason.PAUSED:
            logger.info("paused: %s", detail)
        else:
            logger.warning("hold, %s: %s", state, detail)

    def _watch_policy(self, outcome: Sent | Hold, now_s: float) -> None:
        if isinstance(outcome, Sent):
            self._failing_since_s = None
        elif outcome.reason in POLICY_HOLDS:
            self.metrics.counters["policy_failures"] += 1
            if self._failing_since_s is None:
                self._failing_since_s = now_s
            if now_s - self._failing_since_s >= self._policy_failing_s:
                raise PolicyFailingError(
                    f"no usable prediction from the policy for {self._policy_failing_s:g} s;"
                    f" last: {outcome.reason}, {outcome.detail}"
                )
