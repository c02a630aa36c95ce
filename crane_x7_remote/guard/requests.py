"""What a client may ask of the guard, and a refusal: plain types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Operation = Mapping[str, Any]

ACTION_TOPIC = "action_topic"
"""Kind of a refusal that each loop meets at every tick, unless told otherwise: told once."""


class Refused(Exception):
    """A client's message may not pass; counted by `kind`, a name of ours and never a client's."""

    def __init__(
        self, kind: str, text: str, operation_id: str | None = None, action: str | None = None
    ) -> None:
        super().__init__(text)
        self.kind = kind
        self.operation_id = operation_id
        self.action = action
        """The action whose goal it was: it is answered by a result, too."""


@dataclass(frozen=True)
class Forward:
    """Goes to rosbridge on the client's own connection, as built here."""

    operation: Operation
    subscription: tuple[str, str] | None = None
    """Topic and id that it subscribes (or ends: see `ends`)."""
    ends: bool = False


@dataclass(frozen=True)
class Follow:
    """Subscribe to one of the guard's own topics, or end that."""

    topic: str
    wanted: bool = True


@dataclass(frozen=True)
class Drive:
    """A trajectory for the arm, or over all joints for those who listen."""

    message: Operation
    is_prediction: bool


@dataclass(frozen=True)
class GripperGoal:
    """A gripper goal; `operations` carry it, once the core agrees."""

    position_rad: float
    operations: tuple[Operation, ...]
    action: str
    operation_id: str | None


@dataclass(frozen=True)
class Say:
    """A message for a topic that the guard publishes itself."""

    topic: str
    message: Operation


@dataclass(frozen=True)
class Stop:
    """Brake and let nothing pass, or resume."""

    wanted: bool
    reason: str | None


@dataclass(frozen=True)
class Nothing:
    """Allowed, and nothing is to be done."""


Request = Forward | Follow | Drive | GripperGoal | Say | Stop | Nothing
