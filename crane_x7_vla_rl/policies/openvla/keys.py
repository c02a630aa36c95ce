"""Messages about a checkpoint's statistics, and what to do if those of this arm are missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from crane_x7_vla_rl.policies.base import DEFAULT_UNNORM_KEY

TOOL_DIMENSIONS: Final = 7
"""Dimensions of an action that is a step of the tool, see `targets`."""


def refusal(model: str, known: Mapping[str, Any], key: str, setting: str) -> str:
    """Return a message: `model` has no statistics under `key` (from `setting`), and what to do."""
    said = (
        f"{setting}={key}: {model} has no statistics under this key; known:"
        f" {', '.join(sorted(known)) or 'none'}"
    )
    if key != DEFAULT_UNNORM_KEY:
        return said
    said += (
        ". The model has never seen this arm: fine-tune it first (crane-x7-vla-rl sft --backend"
        f" openvla --model {model} --data-root FOLDER)"
    )
    if not known:
        return said
    tool = [name for name in sorted(known) if dimensions(known[name]) == TOOL_DIMENSIONS]
    tried = tool[0] if tool else min(known)
    said += f", or name one of its keys to see its predictions ({setting}={tried}, with --dry-run)"
    if tool:
        said += (
            f". Actions under {tried} are not angles of the 8 joints but steps of another robot's"
            " tool (7 numbers); inverse kinematics converts them to joint targets, which do no task"
            " of this arm"
        )
    return said


def dimensions(entry: Any) -> int | None:
    """Return the number of dimensions of an action under a key; None if the entry is malformed."""
    action = entry.get("action") if isinstance(entry, Mapping) else None
    low = action.get("q01") if isinstance(action, Mapping) else None
    return len(low) if isinstance(low, list) else None
