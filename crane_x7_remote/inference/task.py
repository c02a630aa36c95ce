"""The task of a loop, and the loop's status. Instruction -> accepted or refused.

A refused task still reaches the policy: the arm then stays where it is, as "stop" requires.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from crane_x7_remote.inference.hold import HoldReason
from crane_x7_remote.inference.metrics import LoopMetrics
from crane_x7_remote.rosbridge.loop_status import LoopStatus
from crane_x7_vla_rl.log_text import shown
from crane_x7_vla_rl.policies.base import Interpreter, Policy

logger = logging.getLogger(__name__)

PERIOD_S = 1.0
"""Period of the status while nothing changes."""
SHORTEST_S = 0.25
"""Shortest time between two statuses: holds may start and end with every frame."""
HOLDS = frozenset(HoldReason)
REMIND_S = 30.0
"""Period of the warning about a refused task."""


class Task:
    """The loop's task, and whether its policy can do it."""

    def __init__(self, policy: Policy, instruction: str, hint: str) -> None:
        """`hint` explains how to give another task."""
        self._policy = policy if isinstance(policy, Interpreter) else None
        self._hint = hint
        self._reminded_s = float("-inf")
        self.instruction = instruction
        self.refusal = self._refusal(instruction)
        """Why the policy cannot do it; None if it can."""

    def take(self, instruction: str) -> None:
        """Adopt a new task."""
        self.instruction, self.refusal = instruction, self._refusal(instruction)
        self._reminded_s = float("-inf")

    def remind(self, now_s: float) -> None:
        """Log a refused task, immediately and every REMIND_S."""
        if self.refusal is not None and now_s - self._reminded_s >= REMIND_S:
            self._reminded_s = now_s
            logger.warning(
                "no task, the arm stays still: %s. %s", shown(self.refusal, 600), self._hint
            )

    def _refusal(self, instruction: str) -> str | None:
        return None if self._policy is None else self._policy.refusal(instruction)


@dataclass(frozen=True)
class _Told:
    """The part of a status whose changes are published immediately."""

    instruction: str
    refusal: str | None
    hold: str | None


class StatusReport:
    """Decides when a status is due, and fills it."""

    def __init__(self, task: Task, metrics: LoopMetrics, dry_run: bool) -> None:
        self._task = task
        self._metrics = metrics
        self._dry_run = dry_run
        self._told: _Told | None = None
        self._told_s = float("-inf")
        self._is_asked = False

    def ask(self) -> None:
        """Make the next status due immediately: a client gave a task and waits for the answer."""
        self._is_asked = True

    def due(self, now_s: float) -> LoopStatus | None:
        """Return the status to publish now, if one is due."""
        task, since_s = self._task, now_s - self._told_s
        now = _Told(task.instruction, task.refusal, self._hold())
        changed = now != self._told and since_s >= SHORTEST_S
        if not (self._is_asked or changed or since_s >= PERIOD_S):
            return None
        self._told, self._told_s, self._is_asked = now, now_s, False
        return LoopStatus(
            session=self._metrics.session,
            task=task.instruction,
            task_state="accepted" if task.refusal is None else "refused",
            reason=task.refusal,
            rate_hz=self._metrics.rate_hz,
            latency_ms=self._metrics.latency.quantile_ms(0.5),
            hold=now.hold,
            trajectories=self._metrics.counters["trajectories"],
            dry_run=self._dry_run,
        )

    def _hold(self) -> str | None:
        state = self._metrics.state
        return state if state in HOLDS else None
