"""Configuration of the simulation: flags → a frozen `WorldConfig`; names of the tasks.

The simulation itself takes seconds to import and is not touched, so `--help` answers at once.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final, Literal

from crane_x7_vla_rl import fields
from crane_x7_vla_rl.fields import Count, FiniteAmount, FinitePositive, one_of, some_of

LIFT_ID: Final = "Lift-CRANE-X7"
PICK_PLACE_ID: Final = "PickPlace-CRANE-X7"
EPISODE_S: Final = {LIFT_ID: 10.0, PICK_PLACE_ID: 20.0}
"""Name of each task and time limit of an episode in s: 200 and 400 steps at 20 Hz."""
EVALUATION_SEED: Final = 1_000_000
"""Demonstrations use seeds below, evaluation this and above: no scene is in both."""
COLOUR_NAMES: Final = ("red", "green", "blue")
Render = Literal["auto", "gpu", "cpu"]
"""Device that draws; see sim.render."""


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

    @property
    def max_steps(self) -> int:
        """Control steps of an episode, at least one."""
        return max(1, round((self.episode_s or EPISODE_S[self.task]) * self.control_hz))

    def as_dict(self) -> dict[str, Any]:
        """Return the scene's values for JSON, without `render`, which is the machine's."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if name != "render"
        }


def add_arguments(
    parser: argparse.ArgumentParser, without: tuple[str, ...] = (), asked: tuple[str, ...] = ()
) -> None:
    """Add a flag for each field of WorldConfig not in `without`; see `fields.add_flags`."""
    group = parser.add_argument_group("scene")
    fields.add_flags(group, WorldConfig, without, typed=True, asked=asked)
