"""The status of a loop on /vla/status: `LoopStatus` <-> JSON in a std_msgs/String. Pure.

The loop publishes it, `say` and monitors read it, and the guard passes only messages that this file
can parse. A field that a newer loop adds is ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from crane_x7_remote.rosbridge.messages import MessageError
from crane_x7_remote.rosbridge.protocol import brief
from crane_x7_remote.rosbridge.topics import STATUS_TOPIC

LONGEST_TEXT: Final = 1100
"""Characters of a task, a reason or a hold; a task has at most 1024 bytes."""
MAX_BYTES: Final = 20_000
SESSION_DIGITS: Final = 8

TaskState = Literal["accepted", "refused"]


@dataclass(frozen=True)
class LoopStatus:
    """The current state of one loop."""

    session: str
    """8 hex digits."""
    task: str
    task_state: TaskState
    reason: str | None
    """Why the task is refused, if it is."""
    rate_hz: float | None
    """Measured rate of ticks; None before the second tick."""
    latency_ms: float | None
    """Median time from a frame's arrival to its trajectory; None before the first one."""
    hold: str | None
    """Why the arm is not driven now; None if it is."""
    trajectories: int
    dry_run: bool

    def message(self) -> dict[str, str]:
        """Return the std_msgs/String."""
        values = {
            name: value[:LONGEST_TEXT] if isinstance(value, str) else value
            for name, value in asdict(self).items()
        }
        return {"data": json.dumps(values, ensure_ascii=False, allow_nan=False)}


def read(message: Mapping[str, Any]) -> LoopStatus:
    """Return the status in a std_msgs/String; raises MessageError."""
    text = message.get("data")
    if not isinstance(text, str) or len(text.encode(errors="replace")) > MAX_BYTES:
        raise MessageError(f"{STATUS_TOPIC}: data is {brief(text)}, expected a short text")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"{STATUS_TOPIC}: data is {brief(text)}, expected JSON") from error
    if not isinstance(values, dict):
        raise MessageError(f"{STATUS_TOPIC}: data is {brief(values)}, expected an object")
    return LoopStatus(
        session=_session(values.get("session")),
        task=_text(values, "task") or "",
        task_state=_task_state(values.get("task_state")),
        reason=_text(values, "reason"),
        rate_hz=_amount(values, "rate_hz"),
        latency_ms=_amount(values, "latency_ms"),
        hold=_text(values, "hold"),
        trajectories=_count(values.get("trajectories")),
        dry_run=values.get("dry_run") is True,
    )


def _session(value: object) -> str:
    is_hex = isinstance(value, str) and all(digit in "0123456789abcdef" for digit in value)
    if not isinstance(value, str) or not is_hex or len(value) != SESSION_DIGITS:
        raise MessageError(
            f"{STATUS_TOPIC}: session is {brief(value)}, expected {SESSION_DIGITS} hex digits"
        )
    return value


def _task_state(value: object) -> TaskState:
    if value == "accepted":
        return "accepted"
    if value == "refused":
        return "refused"
    raise MessageError(
        f"{STATUS_TOPIC}: task_state is {brief(value)}, expected accepted or refused"
    )


def _text(values: Mapping[str, Any], name: str) -> str | None:
    value = values.get(name)
    if value is None or (isinstance(value, str) and len(value) <= LONGEST_TEXT):
        return value
    raise MessageError(f"{STATUS_TOPIC}: {name} is {brief(value)}, expected a short text")


def _amount(values: Mapping[str, Any], name: str) -> float | None:
    value = values.get(name)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < math.inf:
        raise MessageError(f"{STATUS_TOPIC}: {name} is {brief(value)}, expected 0 or more")
    return float(value)


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        raise MessageError(f"{STATUS_TOPIC}: trajectories is {brief(value)}, expected a count")
    return value
