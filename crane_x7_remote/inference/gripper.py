"""The gripper's later targets of a chunk: each becomes a goal when its step begins.

The arm gets a chunk as one trajectory; the gripper's action takes one goal at a time, for at once.
Without this, a loop that predicts once a second would close the gripper up to a second late.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable

from crane_x7_remote.inference.link.ports import RobotClient
from crane_x7_remote.inference.outgoing import Dialect, Outgoing
from crane_x7_remote.inference.shaping import Shaped
from crane_x7_vla_rl.types import Trajectory

RETRY_S = 0.005
"""A goal that the client could not take, because it still sends, is tried again after this."""


class LaterGoals:
    """Sends the later goals of the newest trajectory; `send_due` is called often enough."""

    def __init__(self, client: RobotClient, outgoing: Outgoing, clock: Callable[[], float]) -> None:
        self._client = client
        self._outgoing = outgoing
        self._clock = clock
        self._due: deque[tuple[float, float, int]] = deque()
        """(when, goal in rad, which step)."""
        self._of: tuple[Trajectory, Dialect] | None = None

    @property
    def next_s(self) -> float:
        """When the next goal is due, on the loop's clock; infinity without one."""
        return self._due[0][0] if self._due else math.inf

    @property
    def times_s(self) -> list[float]:
        """When each goal is due, in order."""
        return [at_s for at_s, *_ in self._due]

    def plan(self, shaped: Shaped, dialect: Dialect) -> None:
        """Replace the goals by those of a trajectory that was just sent."""
        steps = enumerate(shaped.gripper_later, start=1)
        self._due = deque((target.send_s, target.position_rad, step) for step, target in steps)
        self._of = shaped.trajectory, dialect

    def cancel(self) -> None:
        """Send none of them: the arm brakes, or the robot may be another."""
        self._due.clear()

    def send_due(self) -> int:
        """Send the newest goal that is due, if it is new; return how many were sent."""
        now_s = self._clock()
        newest = None
        while self._due and self._due[0][0] <= now_s:
            newest = self._due.popleft()
        if newest is None or self._of is None:
            return 0
        _, goal_rad, step = newest
        trajectory, dialect = self._of
        bundle = self._outgoing.gripper(goal_rad, trajectory, dialect, step)
        if not bundle.operations:
            return 0
        dropped = functools.partial(self._outgoing.goal_dropped, bundle)
        if not self._client.publish(bundle.operations, None, dropped):
            if self.next_s > now_s + RETRY_S:
                self._due.appendleft((now_s + RETRY_S, goal_rad, step))
            return 0
        self._outgoing.sent(bundle)
        return 1
