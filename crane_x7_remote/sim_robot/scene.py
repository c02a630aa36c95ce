"""Judges the true scene. /sim/state and an instruction → fulfilled or not. Pure."""

from __future__ import annotations

from typing import Any

from crane_x7_vla_rl.policies.words import NotUnderstood, Task, Verb, parse


def fulfilled(instruction: str, scene: dict[str, Any], before: str | None = None) -> bool:
    """Return whether the true scene fulfils an instruction now.

    The instruction is parsed as by the colour servo, English or Japanese. `before` is the previous
    instruction, to whose cube "it" refers.
    """
    earlier = None if before is None else parse(before)
    task = parse(instruction, earlier.colour if isinstance(earlier, Task) else None)
    if isinstance(task, NotUnderstood):
        return False
    status = scene.get("cubes", {}).get(task.colour, {})
    return bool(status.get("placed" if task.verb is Verb.PLACE else "lifted"))


def grasped(scene: dict[str, Any]) -> tuple[str, ...]:
    """Return the colours of the cubes that the fingers hold."""
    cubes = scene.get("cubes", {})
    return tuple(colour for colour, status in cubes.items() if status.get("grasped"))
