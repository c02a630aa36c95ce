"""Requests of a client to the guard, and a refusal: plain types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Operation = Mapping[str, Any]

ACTION_TOPIC = "action_topic"
"""Kind of a refusal that each loop causes at every tick by default: reported once."""


class Refused(Exception):
    """A client's message may not pass; counted by `kind`, which is never a client's text."""

    def __init__(
        self, kind: str, text: str, operation_id: str | None = None, action: str | None = None
    ) -> None:
        super().__init__(text)
        self.kind = kind
        self.operation_id = operation_id
        self.action = action
        """The action of a refused goal: the goal is also answered by a result."""


@dataclass(frozen=True)
class Forward:
    """An operation for rosbridge on the client's own connection, rebuilt by the rules."""

    operation: Operation
    subscription: tuple[str, str] | None = None
    """Topic and id that it subscribes (or unsubscribes: see `ends`)."""
    ends: bool = False


@dataclass(frozen=True)
class Follow:
    """Subscribe to one of the guard's own topics, or unsubscribe."""

    topic: str
    wanted: bool = True


@dataclass(frozen=True)
class Drive:
    """A trajectory for the arm, or the prediction over all joints for listeners."""

    message: Operation
    is_prediction: bool


@dataclass(frozen=True)
class GripperGoal:
    """A gripper goal; `operations` carry it, if the core accepts it."""

    position_rad: float
    operations: tuple[Operation, ...]
    action: str
    operation_id: str | None


@dataclass(frozen=True)
class Say:
    """A message for a topic that the guard publishes on the client's behalf."""

    topic: str
    message: Operation


@dataclass(frozen=True)
class Stop:
    """Brake and pass nothing, or resume."""

    wanted: bool
    reason: str | None


@dataclass(frozen=True)
class Nothing:
    """Allowed, with nothing to do."""


Request = Forward | Follow | Drive | GripperGoal | Say | Stop | Nothing
