"""One loop for all episodes of a trial: rest, a move, or the policy, as a person decides.

`TrialLoop.rest`, `move` and `drive` may be called from any thread; the loop's thread carries them
out between two ticks. Whoever drives, it is the same loop: one session, the same checks, no time
in which another loop would have to be waited for. When the guard stops, the loop's thread itself
orders rest: after `resume`, the arm moves at the next order only, even if nobody saw the stop. It
also does so when the session's thread does not run, which waits for a terminal that takes nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from crane_x7_remote.inference.config import LoopConfig
from crane_x7_remote.inference.feed import Tick
from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.loop import InferenceLoop
from crane_x7_remote.inference.metrics import LoopMetrics
from crane_x7_remote.inference.pacing import Pacer
from crane_x7_remote.inference.shaping import Shaped
from crane_x7_remote.inference.tick_log import Sent
from crane_x7_remote.inference.worker import PolicyWorker
from crane_x7_remote.rosbridge.client import RosbridgeClient
from crane_x7_remote.rosbridge.frames import EncodedFrame
from crane_x7_remote.trial.moves import Move
from crane_x7_vla_rl.policies.base import Policy
from crane_x7_vla_rl.types import ActionChunk, Observation

logger = logging.getLogger(__name__)

MOVE_HZ: Final = 10.0
"""A move needs this rate at least, however slow the policy is."""
UNATTENDED_S: Final = 1.5
"""After this long without `attend` nothing moves: keys and time limits would not stop it."""
LONGEST_LOOK_S: Final = 0.5
"""The time between two looks counts as this at most: if the whole process stood still, nobody could
have called `attend`."""


class Mode(StrEnum):
    """Who decides where the arm goes."""

    REST = "rest"
    MOVE = "move"
    POLICY = "policy"


@dataclass(frozen=True)
class _Order:
    """What a person wants from now on."""

    mode: Mode
    why: str
    """Of a rest, for the status."""
    intervention: bool = False
    """Whether a person drives meanwhile, by a leader arm or by hand."""
    resets: bool = False
    """Whether the policy forgets what it saw: a new episode."""
    move: Move | None = None
    stops: int = 0
    """How often the guard had stopped when this was ordered."""
    stopped: str | None = None
    """Why the guard stopped, if the loop itself ordered this rest because of it."""
    is_unattended: bool = False
    """Whether the loop itself ordered this rest because `attend` was not called."""
    rested_s: float | None = None
    """When the loop itself ordered this rest."""


class _Mover:
    """The current move as a policy."""

    may_answer_alike = True

    def __init__(self, covers_s: float) -> None:
        self._covers_s = covers_s
        self.move: Move | None = None

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return the move's next targets; raises NothingToFollowError."""
        assert self.move is not None  # the loop has begun it
        move = self.move
        return [
            move.chunk(each.joints.position_rad, each.time_s, self._covers_s)
            for each in observations
        ]

    def reset(self) -> None:
        """Nothing is remembered."""


class TrialLoop(InferenceLoop):
    """The loop of a trial; it rests until something else is ordered."""

    def __init__(
        self,
        client: RosbridgeClient,
        policy: Policy,
        config: LoopConfig,
        limits: Limits,
        clock: Callable[[], float],
        observe: Callable[[Tick], None] | None = None,
        metrics: LoopMetrics | None = None,
    ) -> None:
        super().__init__(client, policy, config, limits, clock, observe=observe, metrics=metrics)
        self._move_rate_hz = max(config.rate_hz, MOVE_HZ)
        self._mover = _Mover(2 / self._move_rate_hz + config.validity_s)
        self._policy_worker = self._worker
        self._move_worker = PolicyWorker(self._mover, clock)
        self._ordering = threading.Lock()
        self._order = self._current = _Order(Mode.REST, "the trial has not begun")
        self._attended: int | None = None
        """Number of signs of life of the session's thread; None: none is expected."""
        self._seen: int | None = None
        self._looked_s = clock()
        self._unseen_s = 0.0

    def rest(self, why: str, by_hand: bool = False) -> None:
        """Brake the arm and hold it; `by_hand`: a person moves it meanwhile."""
        self._give(_Order(Mode.REST, why, intervention=by_hand))

    def move(self, move: Move, intervention: bool = False) -> None:
        """Follow a move."""
        self._give(_Order(Mode.MOVE, "", intervention, move=move))

    def drive(self, begins: bool) -> None:
        """Let the policy drive; `begins`: a new episode, so it forgets all earlier frames."""
        self._give(_Order(Mode.POLICY, "", resets=begins))

    def attend(self, is_expected: bool = True) -> None:
        """Note that the session's thread runs; after this it must call again within UNATTENDED_S,
        or the arm rests, unless `is_expected` is False."""
        self._attended = (self._attended or 0) + 1 if is_expected else None

    @property
    def guard_is_there(self) -> bool:
        """Whether a guard checks what this loop sends."""
        return self._echoes.guard.is_there(self._clock())

    @property
    def guard_was_there(self) -> bool:
        """Whether a guard was ever heard; the link to it may be down."""
        return self._echoes.guard.was_there

    @property
    def guard_stopped(self) -> str | None:
        """Why the guard lets nothing pass; None if it passes, or there is none."""
        return self._echoes.guard.stopped(self._clock())

    @property
    def stopped_by_guard(self) -> str | None:
        """Why the guard stopped, if the loop has rested since then; None after the next order."""
        return self._order.stopped

    @property
    def is_unattended(self) -> bool:
        """Whether the loop has rested because `attend` was not called; until the next order."""
        return self._order.is_unattended

    @property
    def rested_s(self) -> float | None:
        """When the loop itself ordered rest, on its clock; None after the next order."""
        return self._order.rested_s

    @property
    def refusal(self) -> str | None:
        """Why the policy cannot do the task; None if it can."""
        return self._task.refusal

    @property
    def mode(self) -> Mode:
        """Who decides now."""
        return self._current.mode

    def stop(self) -> None:
        """See InferenceLoop."""
        super().stop()
        self._policy_worker.interrupt()
        self._move_worker.interrupt()

    def run(
        self,
        duration_s: float | None = None,
        each_second: Callable[[LoopMetrics], None] | None = None,
    ) -> None:
        """See InferenceLoop."""
        try:
            super().run(duration_s, each_second)
        finally:
            for worker in (self._policy_worker, self._move_worker):
                if worker is not self._worker:
                    worker.close()

    def _give(self, order: _Order) -> None:
        with self._ordering:
            self._order = replace(order, stops=self._echoes.guard.stops)
            self._attended = None if self._attended is None else self._attended + 1
            self._worker.interrupt()  # a prediction that would come too late is not waited for

    # --- loop's thread ---------------------------------------------------------------------------

    def _answer(self) -> None:
        self._carry_out()
        super()._answer()

    def _decide(self) -> Sent | Hold | None:
        self._carry_out()
        if self._current.mode is Mode.REST:
            self._decided_on = None
            return Hold(HoldReason.PAUSED, self._current.why)
        return super()._decide()

    def _carry_out(self) -> None:
        """Do what was ordered since the last call; at rest, see that the arm brakes."""
        self._notice_absence()
        self._notice_guard()
        with self._ordering:
            order, before = self._order, self._current
            self._current = order
            if order is not before and not self._stop.is_set():
                self._change(order, before)
        if order.mode is Mode.REST:
            self._come_to_rest()  # nothing is sent when it has braked

    def _notice_absence(self) -> None:
        """Order rest if the session's thread gave no sign of life for too long."""
        now_s, attended = self._clock(), self._attended
        waited_s, self._looked_s = now_s - self._looked_s, now_s
        if attended is None or attended != self._seen:
            self._seen, self._unseen_s = attended, 0.0
            return
        self._unseen_s += min(waited_s, LONGEST_LOOK_S)
        if self._unseen_s <= UNATTENDED_S:
            return
        with self._ordering:
            if self._order.mode is not Mode.REST and self._attended == attended:
                self._order = _Order(
                    Mode.REST, "the trial's terminal is blocked", stops=self._order.stops,
                    is_unattended=True, rested_s=now_s,
                )  # fmt: skip

    def _notice_guard(self) -> None:
        """Order rest if the guard has stopped since the last order, or is stopped now."""
        guard = self._echoes.guard
        with self._ordering:
            order = self._order
            why = guard.last_stop if guard.stops > order.stops else self.guard_stopped
            is_new = order.mode is not Mode.REST or (order.is_unattended and order.stopped is None)
            if why is not None and is_new:
                self._order = _Order(
                    Mode.REST, f"the guard was stopped: {why}", stops=guard.stops, stopped=why,
                    is_unattended=order.is_unattended, rested_s=order.rested_s or self._clock(),
                )  # fmt: skip

    def _change(self, order: _Order, before: _Order) -> None:
        if order.mode is not Mode.REST and before.mode is Mode.REST:
            self._forget_path()  # it may have been moved by hand
        self._mover.move = order.move
        self._worker = self._move_worker if order.mode is Mode.MOVE else self._policy_worker
        self._worker.resume()
        if order.resets:
            self._policy_worker.reset_next()
        rate_hz = self._move_rate_hz if order.mode is Mode.MOVE else self._config.rate_hz
        if self._pacer.period_s != 1 / rate_hz:
            self._pacer = Pacer(1 / rate_hz, self._clock())
        self._intake.serve(self._worker, self._pacer)

    def _send(self, shaped: Shaped, frame: EncodedFrame, policy_s: float) -> Sent | Hold:
        self._notice_guard()  # it may have stopped and resumed during the prediction
        if self._order is not self._current:
            return Hold(HoldReason.PAUSED, "another order came during the prediction")
        return super()._send(shaped, frame, policy_s)

    def _observed(self, outcome: Sent | Hold) -> Tick:
        return replace(super()._observed(outcome), intervention=self._current.intervention)
