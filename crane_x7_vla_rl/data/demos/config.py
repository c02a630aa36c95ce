"""What demonstrations to record. Flags → `DemosConfig`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl import fields, scenes
from crane_x7_vla_rl.fields import Count, FiniteAmount, FinitePositive, Index
from crane_x7_vla_rl.scenes import WorldConfig

CONFIG: Final = "demos.json"
FAILURES: Final = ".failures"
PATIENCE: Final = 50
"""So many failures more than successes mean that the scene cannot be solved."""


@dataclass(frozen=True)
class DemosConfig:
    """What to record."""

    output: Path
    """Folder of the data set."""
    episodes: Count = 200
    """Successful ones; failures are not counted."""
    first_seed: int = 0
    """Of the scenes."""
    world: WorldConfig = field(default_factory=WorldConfig)
    joint_noise_rad: FiniteAmount = 0.0
    """Largest standard deviation of the noise on what the arm is sent; each episode draws its own
    share of it, so that there are calm ones, too."""
    rearrange: Index = 0
    """Put things elsewhere up to so many times while the arm is on its way: one episode then shows
    as many scenes, and what to do in each from wherever the arm happens to be."""
    arm_rad_s: FinitePositive = 1.6
    """Speed of the arm, as in sim.expert.Manner."""
    keep_wrist: bool = False
    """Never turn the wrist towards the cube."""
    processes: Index = 0
    """Simulations; 0 for one per core."""

    def content(self) -> dict[str, Any]:
        """What decides the episodes, for demos.json."""
        return {
            "first_seed": self.first_seed,
            "joint_noise_rad": self.joint_noise_rad,
            "rearrange": self.rearrange,
            "arm_rad_s": self.arm_rad_s,
            "keep_wrist": self.keep_wrist,
            "world": self.world.as_dict(),
        }


@dataclass(frozen=True)
class DemosReport:
    """What was recorded, earlier runs included."""

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
    """Return what the flags of `add_arguments` say."""
    return fields.from_flags(DemosConfig, args, world=fields.from_flags(WorldConfig, args))
