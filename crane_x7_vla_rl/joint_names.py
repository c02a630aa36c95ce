"""Joints of the entries in a joint message or table. Names → places of `JOINT_NAMES`.

One rule for live joint states, recorded ones and the columns of data sets.
"""

from __future__ import annotations

from collections.abc import Sequence

from crane_x7_vla_rl.robot import JOINT_NAMES


class JointsError(ValueError):
    """The joints are not those of a CRANE-X7; the message fits behind a topic or a file's name."""


def places_of_joints(
    names: Sequence[object], count: int, joints: Sequence[str] = JOINT_NAMES
) -> list[int]:
    """Return the places of the 8 JOINT_NAMES, or of another robot's `joints`, in `names`.

    Other joints are ignored. `count` values belong to the names, in their order. Raises JointsError
    if a joint is missing, named twice or has no value.
    """
    known = list(names)
    missing = [name for name in joints if name not in known]
    if missing:
        raise JointsError(f"lacks {', '.join(missing)}")
    twice = [name for name in joints if known.count(name) > 1]
    if twice:
        raise JointsError(f"names {', '.join(twice)} more than once")
    places = [known.index(name) for name in joints]
    if max(places) >= count:
        raise JointsError(f"has {len(known)} names and {count} positions")
    return places
