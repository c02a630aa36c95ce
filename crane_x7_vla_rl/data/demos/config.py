"""Configuration of demonstrations. Flags → `DemosConfig`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl import fields, scenes
from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.fields import Count, FiniteAmount, FinitePositive, Index, flag
from crane_x7_vla_rl.scenes import PICK_PLACE_ID, WorldConfig

CONFIG: Final = "demos.json"
FAILURES: Final = ".failures"
PATIENCE: Final = 50
"""If failures exceed successes by this number, the scene cannot be solved."""


@dataclass(frozen=True)
class DemosConfig:
    """Demonstrations to record."""

    output: Path
    """Folder of the data set."""
    episodes: Count = 200
    """Number of successful episodes; failures are not counted."""
    first_seed: int = 0
    """Seed of the first scene; every further scene has the next seed."""
    world: WorldConfig = field(default_factory=WorldConfig)
    joint_noise_rad: FiniteAmount = 0.0
    """Largest standard deviation of the noise on targets for the arm; each episode samples its own
    share of it, so that some have little noise."""
    rearrange: Index = 0
    """Largest number of times that objects are moved while the arm approaches: one episode then
    shows several scenes, and the right motion in each from different positions of the arm."""
    arm_rad_s: FinitePositive = 1.6
    """Speed of the joint with the longest way; the default is a third of the servos' limit."""
    keep_wrist: bool = False
    """Never rotate the wrist towards the cube."""
    hold_s: FiniteAmount = 0.0
    """How long the expert continues after success, s: so a policy learns to hold what it lifted."""
    chain: bool = False
    """Record chains of tasks: lift a cube, place it, lift another, an episode for each task; needs
    --task PickPlace-CRANE-X7."""
    start: str | None = flag("--from", None)
    """Policy (folder or Hub id) that drives first in each task; the expert then takes over, and
    only its part is recorded: the way back from where that policy goes."""
    start_s: FiniteAmount = flag("--from-s", 3.0)
    """Longest time that the policy drives, s; each task samples its own."""
    start_late_s: FiniteAmount = flag("--from-late-s", 0.0)
    """Longest time from an image to the first step that uses that policy's answer, s; each task
    samples its own."""
    processes: Index = 0
    """Processes with simulations; 0 for one per core."""

    def __post_init__(self) -> None:
        """Raises DataError for options that do not fit each other."""
        if not self.chain:
            return
        if self.world.task != PICK_PLACE_ID or len(self.world.colours) < 2:
            raise DataError(
                f"--chain with --task {self.world.task} and --colours"
                f" {' '.join(self.world.colours)}: expected --task {PICK_PLACE_ID} and two"
                " colours or more, as it places a cube and lifts another"
            )
        if self.rearrange:
            raise DataError("--rearrange moves what a --chain has placed; leave one out")

    def content(self) -> dict[str, Any]:
        """Settings that determine the episodes, for demos.json."""
        return {
            "first_seed": self.first_seed,
            "joint_noise_rad": self.joint_noise_rad,
            "rearrange": self.rearrange,
            "arm_rad_s": self.arm_rad_s,
            "keep_wrist": self.keep_wrist,
            "hold_s": self.hold_s,
            "chain": self.chain,
            "from": self.start,
            "from_s": self.start_s,
            "from_late_s": self.start_late_s,
            "world": self.world.as_dict(),
        }


@dataclass(frozen=True)
class DemosReport:
    """Recorded episodes, including earlier runs."""

    successes: int
    failures: int

    @property
    def rate(self) -> float:
        """Share of the expert's attempts that succeeded."""
        return self.successes / max(1, self.successes + self.failures)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `demos`."""
    parser.add_argument("output", type=Path, help="folder of the data set")
    parser.add_argument("--resume", action="store_true", help="continue the data set")
    fields.add_flags(parser, DemosConfig, ("output", "world"), typed=True)
    scenes.add_arguments(parser)


def from_arguments(args: argparse.Namespace) -> DemosConfig:
    """Return the configuration from the flags of `add_arguments`."""
    return fields.from_flags(DemosConfig, args, world=fields.from_flags(WorldConfig, args))
