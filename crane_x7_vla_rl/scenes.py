"""Configuration of the simulation: flags → a frozen `WorldConfig`; names of the tasks.

The simulation itself takes seconds to import and is not touched, so `--help` answers at once.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Final, Literal

from crane_x7_vla_rl import fields
from crane_x7_vla_rl.fields import (
    Count,
    FiniteAmount,
    FinitePositive,
    Share,
    one_of,
    some_of,
    within,
)
from crane_x7_vla_rl.reserved import EVALUATION_SEED as EVALUATION_SEED

LIFT_ID: Final = "Lift-CRANE-X7"
PICK_PLACE_ID: Final = "PickPlace-CRANE-X7"
EPISODE_S: Final = {LIFT_ID: 10.0, PICK_PLACE_ID: 20.0}
"""Name of each task and time limit of an episode in s: 200 and 400 steps at 20 Hz."""
COLOUR_NAMES: Final = ("red", "green", "blue")
LIFT_WORDS: Final = "pick up the {} cube"
PLACE_WORDS: Final = "place the {} cube on the plate"
"""Instructions of the two tasks for a colour."""
Render = Literal["auto", "gpu", "cpu"]
"""Device that draws; see sim.render."""


@dataclass(frozen=True)
class Variation:
    """Differences of scene and arm from those of training; the defaults are none.

    With the same seed the layout stays the same, so that two variations are compared on the same
    scenes.
    """

    light: Annotated[float, within(0, 4)] = 1.0
    """Brightness of both lamps, as a factor."""
    hue_deg: Annotated[float, within(-60, 60, "degrees")] = 0.0
    """Rotation of the cubes' hues: at 30, red turns towards orange, blue towards violet."""
    lightness: Annotated[float, within(0.2, 2)] = 1.0
    """Lightness of the cubes' colours, as a factor."""
    cube_size: Annotated[float, within(0.5, 1.6)] = 1.0
    """Edge of the cubes, as a factor of 3 cm; their density stays."""
    friction: Annotated[float, within(0, 4)] = 1.0
    """Friction of fingers and cubes, as a factor of both coefficients."""
    arm_speed: Annotated[float, within(0.05, 1)] | None = None
    """Share of the real arm's limits (4.3 rad/s, 6.4 rad/s² in the loop) within which the arm
    follows its targets; default: servos that set off at once, as in training."""
    camera_offset_m: Annotated[float, within(0, 0.3, "m")] = 0.0
    """Distance by which the base camera is moved, in a direction sampled per episode."""

    @classmethod
    def drawn(cls, seed: int, most: float) -> Variation:
        """Return the variation of a scene; `most`, 0 to 1, is the share of VARIED that it may use.

        Each scene uses a share of that by chance, so that many are nearly as ever.
        """
        chance = random.Random(f"variation of {seed}")
        share = most * chance.random()
        values = {}
        for name, (low, usual, high) in VARIED.items():
            way = chance.uniform(-1, 1)
            furthest = high - usual if way > 0 else usual - low
            values[name] = usual + share * way * furthest
        return cls(**values)


VARIED: Final = {
    "light": (0.5, 1.0, 1.5),
    "hue_deg": (-30.0, 0.0, 30.0),
    "lightness": (0.6, 1.0, 1.4),
    "cube_size": (0.7, 1.0, 1.3),
    "friction": (0.25, 1.0, 1.0),
    "camera_offset_m": (0.0, 0.0, 0.04),
}
"""Least, usual and largest value of what a scene that is drawn varies in."""


@dataclass(frozen=True)
class WorldConfig:
    """One task in one kind of scene; see sim.scene.CubeScene."""

    task: Annotated[str, one_of(tuple(EPISODE_S))] = LIFT_ID
    """Task of the simulated scene."""
    control_hz: Count = 20
    """Steps per second of simulated time."""
    image_size: tuple[int, int] = (128, 128)
    """Width and height of the camera's images."""
    colours: Annotated[tuple[str, ...], some_of(COLOUR_NAMES)] = COLOUR_NAMES
    """Colours of the cubes in the scene; the seed chooses which one the instruction names."""
    spawn_range_m: FiniteAmount = 0.03
    """Largest distance of cubes and plate from their four spots, along x and y, 0 to 0.05."""
    home_noise_rad: FiniteAmount = 0.02
    """Standard deviation of the arm's joints in the first step."""
    camera_shift_m: FiniteAmount = 0.0
    """Standard deviation of the camera's position, sampled per episode."""
    camera_noise: FiniteAmount = 0.0
    """Standard deviation of each pixel's channels, out of 255, sampled per image."""
    episode_s: FinitePositive | None = None
    """Time limit of an episode in simulated seconds; default: the task's, 10 or 20."""
    render: Render = "auto"
    """Device that draws the images. gpu: a CUDA GPU; cpu: Mesa; auto: a GPU if it can draw."""
    vary: Share = 0.0
    """How much scenes differ from each other in light, hue, lightness, size and friction of the
    cubes, and place of the camera; 1: as much as the sheet of the shipped policy shows."""
    variation: Variation = field(default_factory=Variation)
    """Differences from the scenes of training, the same in every scene."""

    @property
    def max_steps(self) -> int:
        """Control steps of an episode, at least one."""
        return max(1, round((self.episode_s or EPISODE_S[self.task]) * self.control_hz))

    def as_dict(self) -> dict[str, Any]:
        """Return the scene's values for JSON: without `render`, which is the machine's, and
        without variations that change nothing."""
        without = {"render"} | ({"variation"} if self.variation == Variation() else set())
        without |= set() if self.vary else {"vary"}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if name not in without
        }


def add_arguments(
    parser: argparse.ArgumentParser, without: tuple[str, ...] = (), asked: tuple[str, ...] = ()
) -> None:
    """Add a flag for each field of WorldConfig not in `without`; see `fields.add_flags`."""
    group = parser.add_argument_group("scene")
    fields.add_flags(group, WorldConfig, (*without, "variation"), typed=True, asked=asked)


def add_variation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each field of Variation."""
    group = parser.add_argument_group("variation of scene and arm")
    fields.add_flags(group, Variation, typed=True)
