"""Which columns of a LeRobot feature hold the 8 joints, by its names. info.json → `Columns`.

Names are compared, never places: a feature may interleave `.pos`, `.vel` and `.effort`, and drivers
call the joints otherwise than the robot does. `KNOWN_NAMES` lists all names that are understood.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.data.lerobot import layout
from crane_x7_vla_rl.fields import quoted
from crane_x7_vla_rl.joint_names import JointsError, places_of_joints
from crane_x7_vla_rl.robot import DOF, JOINT_NAMES, PREFIX

logger = logging.getLogger(__name__)

POSITION: Final = (".pos", ".position")
OTHERS: Final = (".vel", ".velocity", ".effort", ".current", ".torque", ".load", ".temperature")
"""Suffixes of LeRobot's drivers; a name without one is a position, too."""
DRIVER_NAMES: Final = (
    tuple(name.removeprefix(PREFIX) for name in JOINT_NAMES),
    tuple(name.removeprefix(PREFIX).removesuffix("_joint") for name in JOINT_NAMES),
    (*(f"joint{number}" for number in range(1, DOF)), "gripper"),
    (*(f"joint_{number}" for number in range(1, DOF)), "gripper"),
    # Public CRANE-X7 data sets, in the order of the servos' ids 2 … 9.
    (
        "shoulder_pan", "shoulder_lift", "elbow_flex", "elbow_roll", "wrist_flex", "wrist_roll",
        "wrist_pitch", "gripper",
    ),
)  # fmt: skip
"""Names of drivers for the joints, each in the order of JOINT_NAMES."""
KNOWN_NAMES: Final[Mapping[str, str]] = {
    driver: ours
    for names in (JOINT_NAMES, *DRIVER_NAMES)
    for driver, ours in zip(names, JOINT_NAMES, strict=True)
}


@dataclass(frozen=True)
class Columns:
    """Where the joints are in the rows of one feature."""

    width: int
    """Number of values in a row."""
    places: tuple[int, ...]
    """Column of each of JOINT_NAMES."""


def find_columns(path: Path, info: Mapping[str, Any]) -> dict[str, Columns]:
    """Return the columns of the joints in state and action.

    Raises DataError for other joints, and if one names its joints in another order than JOINT_NAMES
    while the other has no names.
    """
    state, action = (_columns(path, info, name) for name in (layout.STATE, layout.ACTION))
    ours = Columns(DOF, tuple(range(DOF)))
    if (state is None) != (action is None) and ours not in (state, action):
        named, nameless = layout.STATE, layout.ACTION
        if state is None:
            named, nameless = nameless, named
        raise DataError(
            f"{path}: {named} names its joints in another order than"
            f" {', '.join(JOINT_NAMES)}, and {nameless} names none, so its order is unknown; add"
            f" the names of {nameless} to this file"
        )
    return {layout.STATE: state or ours, layout.ACTION: action or ours}


def _columns(path: Path, info: Mapping[str, Any], feature: str) -> Columns | None:
    """Return the columns of the joints in `feature`; None without names.

    Raises DataError for names of another robot.
    """
    about = info["features"].get(feature, {})
    names = list(_flat(about.get("names")))
    shape = about.get("shape")
    robot = f"robot_type is {quoted(info.get('robot_type'))}"
    if not names:
        if shape != [DOF]:
            raise DataError(
                f"{path}: {feature} has shape {shape}, expected [{DOF}]: the joints of a CRANE-X7;"
                " a feature with more values must name them"
            )
        logger.warning(
            "%s: %s names no joints (%s); its columns are assumed to be %s",
            path, feature, robot, ", ".join(JOINT_NAMES),
        )  # fmt: skip
        return None
    try:
        if shape != [len(names)]:
            width = shape[0] if isinstance(shape, list) and len(shape) == 1 else shape
            raise JointsError(f"has {len(names)} names for {width} columns")
        return Columns(len(names), tuple(places_of_joints(_positions(names), len(names))))
    except JointsError as error:
        raise DataError(
            f"{path}: {feature} has the joints {', '.join(names)} ({robot}), not those of a"
            f" CRANE-X7: it {error}. If they are its joints under other names, rename them in this"
            " file, column by column"
        ) from error


def _positions(names: list[str]) -> list[str | None]:
    """Return the joint of each column that holds a position; None for other quantities."""
    with_suffix = any(name.endswith(POSITION) for name in names)
    found: list[str | None] = []
    for name in names:
        suffix = next((each for each in POSITION if name.endswith(each)), "")
        if name.endswith(OTHERS) or (with_suffix and not suffix):
            found.append(None)
        else:
            bare = name.removesuffix(suffix)
            found.append(KNOWN_NAMES.get(bare, bare))
    return found


def _flat(names: Any) -> Iterator[str]:
    """Yield the names in a list, in lists by kind such as {"motors": [...]}, or name → column."""
    if isinstance(names, str):
        yield names
    elif isinstance(names, Mapping) and all(type(at) is int for at in names.values()):
        yield from sorted(names, key=lambda name: names[name])
    else:
        for name in names.values() if isinstance(names, Mapping) else names or ():
            if name is not None:
                yield from _flat(name)
