"""Another program's joint targets through the loop. Targets → trajectories, or a Hold.

A program that steps a robot, such as LeRobot's commands, calls `observe` and `send` at its own
rate. The loop takes the newest target as a policy's chunk, so every check of `safety`, the limits,
the clocks, other loops and the guard are those of any policy. Without a new target the arm comes to
rest.

Threads: the loop runs on one, the program on others, one call at a time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crane_x7_remote.errors import RemoteError
from crane_x7_remote.inference.config import LoopConfig
from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.loop import InferenceLoop
from crane_x7_remote.inference.tick_log import Sent
from crane_x7_remote.rosbridge import frames
from crane_x7_remote.rosbridge.client import RosbridgeClient
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_vla_rl.types import ActionChunk, Array, Image, Observation

logger = logging.getLogger(__name__)

CATCH_UP_S = 1.0
"""A program that saves an episode keeps the network thread from running; what is old right after
that gets this long to be replaced."""
POLL_S = 0.01
STOP_S = 3.0
"""Time for the loop to brake the arm and end."""


class TargetError(RemoteError):
    """The arm cannot be observed, or does not take targets; says why."""


class NoTargetError(Exception):
    """There is no fresh target: the loop holds."""


@dataclass(frozen=True)
class TargetConfig:
    """How targets become motion."""

    follow_s: float = 0.2
    """Time after its frame at which a target is due: longer is smoother and further behind."""
    expires_s: float = 0.5
    """A target older than this is not followed any more."""
    hold_s: float = 3.0
    """`send` raises after the loop has refused everything for this long."""
    connect_s: float = 10.0
    """Longest wait for rosbridge, and then for camera and joints."""


class LatestTarget:
    """The newest target as a policy."""

    may_answer_alike = True

    def __init__(self, config: TargetConfig, clock: Callable[[], float]) -> None:
        self._config, self._clock = config, clock
        self._lock = threading.Lock()
        self._target: tuple[Array, float] | None = None
        self.asked = threading.Event()
        """Set when the loop wanted a target: nothing else keeps it from driving."""

    def put(self, target_rad: npt.ArrayLike) -> None:
        """Set the target, (8,) rad."""
        target = np.array(target_rad, np.float64)
        with self._lock:
            self._target = target, self._clock()

    @property
    def is_fresh(self) -> bool:
        """Whether there is a target that has not expired."""
        with self._lock:
            found = self._target
        return found is not None and self._clock() - found[1] <= self._config.expires_s

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return the target as a chunk of one step; raises NoTargetError."""
        self.asked.set()
        with self._lock:
            found = self._target
        if found is None:
            raise NoTargetError("no target received yet")
        target, set_s = found
        age_s = self._clock() - set_s
        if age_s > self._config.expires_s:
            raise NoTargetError(
                f"the last target is {age_s:.2f} s old, limit {self._config.expires_s:g} s"
            )
        return [ActionChunk(target[None], self._config.follow_s) for _ in observations]

    def reset(self) -> None:
        """Forget the target: after a reconnect the arm may stand elsewhere."""
        with self._lock:
            self._target = None


class _Loop(InferenceLoop):
    """The loop, with the outcome of each tick told to `note`."""

    note: Callable[[Sent | Hold], None]

    def tick(self) -> Sent | Hold | None:
        outcome = super().tick()
        if outcome is not None:
            self.note(outcome)
        return outcome


class TargetDriver:
    """Observes one arm and moves it to targets; connected from `start` to `close`."""

    def __init__(
        self,
        client: ClientConfig,
        loop: LoopConfig,
        config: TargetConfig,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._clock = config, clock
        self._max_age_s = loop.max_frame_age_s
        self._client = RosbridgeClient(client, clock)
        self._targets = LatestTarget(config, clock)
        self._loop = _Loop(self._client, self._targets, loop, limits, clock)
        self._loop.note = self._note
        self._thread = threading.Thread(target=self._run, name="loop", daemon=True)
        self._failure: BaseException | None = None
        self._hold: Hold | None = None
        self._held_since_s: float | None = None
        """When the loop began to refuse targets without interruption."""

    def start(self) -> None:
        """Connect, and wait until only a target is missing.

        Raises PeerUnreachableError, or TargetError with the loop's reason.
        """
        self._client.start()
        self._client.wait_connected(self._config.connect_s)
        self._thread.start()
        if not self._targets.asked.wait(self._config.connect_s):
            hold = self._hold
            why = "no frame and joints yet" if hold is None else f"{hold.reason}: {hold.detail}"
            self.close()
            raise TargetError(f"the arm cannot be driven after {self._config.connect_s:g} s; {why}")

    def close(self) -> None:
        """Brake the arm to rest and disconnect; safe to call more than once."""
        self._loop.stop()
        if self._thread.ident is not None:
            self._thread.join(STOP_S)
        self._client.close()

    def observe(self) -> tuple[Image, Array]:
        """Return the newest image and measured joints (8,); raises TargetError if they are old."""
        self._check()
        deadline_s = self._clock() + CATCH_UP_S
        while (problem := self._stale()) is not None:
            if self._clock() > deadline_s:
                raise TargetError(problem)
            self._check()
            time.sleep(POLL_S)
        frame, joints = self._client.latest_frame(), self._client.joints()
        assert frame is not None
        assert joints is not None
        return frames.decode_image(frame), joints.state.position_rad

    def _stale(self) -> str | None:
        """Return why there is no fresh frame and joint state; None if there is."""
        client, now_s = self._client, self._clock()
        frame, joints, link = client.latest_frame(), client.joints(), client.link
        if frame is None:
            return _missing("camera frame", link.no_frame_because)
        if joints is None:
            return _missing("joint state", link.no_joints_because)
        ages = {
            "camera frame": client.frame_age_s(frame, now_s),
            "joint state": now_s - joints.arrival_s,
        }
        for what, age_s in ages.items():
            if age_s > self._max_age_s:
                return (
                    f"the newest {what} is {age_s:.2f} s old, limit {self._max_age_s:g} s; is the"
                    " robot still running?"
                )
        return None

    def send(self, target_rad: npt.ArrayLike) -> None:
        """Set the target (8,) rad, absolute; raises TargetError after `hold_s` of refusals."""
        self._check()
        self._targets.put(target_rad)
        since_s, hold = self._held_since_s, self._hold
        if since_s is not None and hold is not None:
            held_s = self._clock() - since_s
            if held_s > self._config.hold_s:
                raise TargetError(
                    f"targets refused for {held_s:.1f} s; {hold.reason}: {hold.detail}"
                )

    @property
    def hold(self) -> Hold | None:
        """Why the last target was refused; None if it was sent."""
        return self._hold

    def _note(self, outcome: Sent | Hold) -> None:
        self._hold = outcome if isinstance(outcome, Hold) else None
        no_target = isinstance(outcome, Hold) and outcome.reason is HoldReason.POLICY_RAISED
        if self._hold is None or no_target or not self._targets.is_fresh:
            self._held_since_s = None  # sent, or there is no target to refuse
        elif self._held_since_s is None:
            self._held_since_s = self._clock()

    def _run(self) -> None:
        try:
            self._loop.run()
        except BaseException as error:  # any error: the other thread must see it
            self._failure = error
            logger.error("the loop failed: %s", error)

    def _check(self) -> None:
        if self._failure is not None:
            raise TargetError(f"the loop ended: {self._failure}") from self._failure


def _missing(what: str, because: str | None) -> str:
    return f"no {what} received yet" + (f": {because}" if because else "")
