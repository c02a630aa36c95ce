"""The guard's state for people. A std_msgs/String on /vla/guard → `GuardReport`. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from crane_x7_remote.inference.link.guard_state import STATE_TOPIC
from crane_x7_remote.rosbridge.messages import MessageError
from crane_x7_remote.rosbridge.protocol import brief
from crane_x7_vla_rl.log_text import shown

MAX_BYTES: Final = 20_000
WHY_LETTERS: Final = 200
REASONS: Final = 5
"""Reasons of refusals that are named; the frequent ones first."""


@dataclass(frozen=True)
class GuardReport:
    """What a guard says about itself, with all texts fit for a terminal."""

    guards_us: bool
    """Whether this connection goes through the guard."""
    stopped: str | None
    """Why it lets nothing pass; None if it does."""
    driver: int | None
    """Number of the client that drives."""
    is_moving: bool
    """Whether a trajectory is running."""
    passed: int
    refused: tuple[tuple[str, int], ...]
    """Reason and count, the frequent ones first."""
    has_rosbridge: bool
    """Whether the guard is connected to the robot's rosbridge."""


def read(message: Mapping[str, Any]) -> GuardReport:
    """Return the state in a std_msgs/String; raises MessageError."""
    text = message.get("data")
    if not isinstance(text, str) or len(text.encode(errors="replace")) > MAX_BYTES:
        raise MessageError(f"{STATE_TOPIC}: data is {brief(text)}, expected a short text")
    try:
        state = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"{STATE_TOPIC}: data is {brief(text)}, expected JSON") from error
    if not isinstance(state, dict) or "stopped" not in state:
        raise MessageError(f"{STATE_TOPIC}: data is {brief(state)}, expected the guard's state")
    stopped, gate = state["stopped"], state.get("gate")
    return GuardReport(
        guards_us=_is_count(state.get("you")),
        stopped=None if stopped is None else shown(stopped, WHY_LETTERS),
        driver=state["driver"] if _is_count(state.get("driver")) else None,
        is_moving=state.get("running") is True,
        passed=state["passed"] if _is_count(state.get("passed")) else 0,
        refused=_counts(state.get("refused")),
        has_rosbridge=not isinstance(gate, dict) or gate.get("rosbridge") is not False,
    )


def _counts(value: object) -> tuple[tuple[str, int], ...]:
    if not isinstance(value, dict):
        return ()
    counted = [(shown(name, 40), count) for name, count in value.items() if _is_count(count)]
    return tuple(sorted(counted, key=lambda each: -each[1])[:REASONS])


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
