"""What to simulate, in words and numbers: flags → a frozen `WorldConfig`; names of the tasks.

The simulation itself takes seconds to import and is not touched, so `--help` answers at once.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from typing import Any, Final

LIFT_ID: Final = "Lift-CRANE-X7"
PICK_PLACE_ID: Final = "PickPlace-CRANE-X7"
EPISODE_S: Final = {LIFT_ID: 10.0, PICK_PLACE_ID: 20.0}
"""Name of each task and how long an episode may take: 200 and 400 steps at 20 Hz."""
EVALUATION_SEED: Final = 1_000_000
"""Demonstrations take seeds below, evaluation from here on: no scene is in both."""
COLOUR_NAMES: Final = ("red", "green", "blue")


@dataclass(frozen=True)
class WorldConfig:
    """One task in one kind of scene; see sim.scene.CubeScene."""

    task: str = LIFT_ID
    control_hz: int = 20
    """Steps per second of simulated time."""
    image_size: tuple[int, int] = (128, 128)
    """(width, height)."""
    colours: tuple[str, ...] = COLOUR_NAMES
    """The cubes that there are; the seed chooses which of them the instruction names."""
    spawn_range_m: float = 0.03
    """Cubes and plate lie at most this far, along x and y, from their four spots."""
    home_noise_rad: float = 0.02
    """Standard deviation of the arm's joints in the first step."""
    camera_shift_m: float = 0.0
    """Standard deviation of the camera's place, sampled per episode."""
    camera_noise: float = 0.0
    """Standard deviation of each pixel's channels, of 255, sampled per picture."""
    episode_s: float | None = None
    """How long an episode may take; None for the task's own time."""

    @property
    def max_steps(self) -> int:
        """Control steps of an episode, at least one."""
        return max(1, round((self.episode_s or EPISODE_S[self.task]) * self.control_hz))

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


def image_size(text: str) -> tuple[int, int]:
    """Return (width, height) for WxH; raises ValueError."""
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is no size, expected WxH such as 128x128")
    return int(width), int(height)


def count(text: str) -> int:
    """Return a whole number above 0; raises ValueError."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def amount(text: str) -> float:
    """Return a number of 0 or more; raises ValueError."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 0 or more")
    return value


def duration(text: str) -> float:
    """Return a number above 0; raises ValueError."""
    value = amount(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def add_arguments(parser: argparse.ArgumentParser, without: tuple[str, ...] = ()) -> None:
    """Add a flag for each field of WorldConfig but those in `without`."""
    default = WorldConfig()
    flags: dict[str, dict[str, Any]] = {
        "task": {"choices": tuple(EPISODE_S), "help": "what to do (%(default)s)"},
        "control_hz": {"type": count, "metavar": "HZ", "help": "steps per second (%(default)s)"},
        "image_size": {"type": image_size, "metavar": "WxH", "help": "of the camera (128x128)"},
        "colours": {"nargs": "+", "choices": COLOUR_NAMES, "help": "of the cubes (all three)"},
        "spawn_range_m": {"type": amount, "help": "how far things lie from their spots, 0 to 0.05"
                          " (%(default)s)"},
        "home_noise_rad": {"type": amount, "help": "of the first pose (%(default)s)"},
        "camera_shift_m": {"type": amount, "help": "of the camera's place (%(default)s)"},
        "camera_noise": {"type": amount, "help": "of each pixel, of 255 (%(default)s)"},
        "episode_s": {"type": duration, "metavar": "S", "help": "how long an episode may take, in"
                      " simulated seconds (10 to lift, 20 to place)"},
    }  # fmt: skip
    group = parser.add_argument_group("scene")
    for name, how in flags.items():
        if name not in without:
            flag = "--" + name.replace("_", "-")
            group.add_argument(flag, default=getattr(default, name), **how)


def from_arguments(args: argparse.Namespace, **fixed: Any) -> WorldConfig:
    """Return the configuration in parsed flags; `fixed` fields count more."""
    given = {name: getattr(args, name) for name in asdict(WorldConfig()) if hasattr(args, name)}
    given["colours"] = tuple(given["colours"])
    return WorldConfig(**(given | fixed))
