"""How to read a LeRobot data set, where its files do not say it. Flags → `Reading`.

The same values may be in `reader.yaml` beside the data; a flag overrides them.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from typing import Final, Literal, get_args

Unit = Literal["rad", "deg", "percent"]
UNITS: Final[tuple[str, ...]] = get_args(Unit)


@dataclass(frozen=True)
class Reading:
    """Facts that the files of a LeRobot data set may lack."""

    camera: str | None = None
    """Camera whose images are read; `wrist` means observation.images.wrist."""
    unit: Unit | None = None
    """Unit of the recorded joints; percent: -100 is a joint's lower limit, 100 its upper one.
    Without it the joints must be in rad, and values that cannot be are refused."""
    gripper_unit: Unit | None = None
    """Unit of the gripper, where it is not that of the arm; percent: 0 is closed, 100 open."""

    def over(self, other: Reading) -> Reading:
        """Return these values, and those of `other` where one is unset."""
        names = [entry.name for entry in fields(self)]
        return Reading(*(getattr(self, name) or getattr(other, name) for name in names))

    @property
    def flags(self) -> str:
        """The flags that are set, for messages."""
        names = [entry.name for entry in fields(self) if getattr(self, entry.name) is not None]
        return ", ".join(f"--{name.replace('_', '-')}" for name in names)


AS_STATED: Final = Reading()
"""Nothing is added to what the files say."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a command that reads a LeRobot data set."""
    parser.add_argument(
        "--camera", metavar="NAME",
        help="camera of a LeRobot data set that has several, such as wrist",
    )  # fmt: skip
    parser.add_argument(
        "--unit", choices=UNITS,
        help="unit of the joints of a LeRobot data set (default: rad, refused if they cannot be)",
    )  # fmt: skip
    parser.add_argument(
        "--gripper-unit", choices=UNITS, help="unit of its gripper (default: that of the arm)"
    )


def from_args(args: argparse.Namespace) -> Reading:
    """Return the flags of `add_arguments`."""
    return Reading(args.camera, args.unit, args.gripper_unit)
