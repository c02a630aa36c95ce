"""What demonstrations to record. Flags → `DemosConfig`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl import scenes
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
    episodes: int = 200
    """Successful ones; failures are not counted."""
    first_seed: int = 0
    world: WorldConfig = field(default_factory=WorldConfig)
    joint_noise_rad: float = 0.0
    """Largest standard deviation of the noise on what the arm is sent; each episode draws its own
    share of it, so that there are calm ones, too."""
    rearrange: int = 0
    """Put things elsewhere up to so many times while the arm is on its way: one episode then shows
    as many scenes, and what to do in each from wherever the arm happens to be."""
    arm_rad_s: float = 1.6
    """Speed of the arm; see sim.expert.Manner."""
    keep_wrist: bool = False
    """Never turn the wrist towards the cube; see sim.expert.Manner."""
    processes: int = 0
    """0 for one per core."""

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
    default = DemosConfig(Path())
    parser.add_argument("output", type=Path, help="folder of the data set")
    parser.add_argument(
        "--episodes", type=scenes.count, default=default.episodes, metavar="N",
        help="how many that succeeded (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--first-seed", type=int, default=0, help="of the scenes (%(default)s)")
    parser.add_argument(
        "--joint-noise-rad", type=scenes.amount, default=0.0,
        help="push the arm about; the lesson stays the expert's (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--rearrange", type=int, default=0, metavar="N",
        help="put things elsewhere up to N times while the arm is on its way (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--arm-rad-s", type=scenes.amount, default=default.arm_rad_s,
        help="speed of the arm (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--keep-wrist", action="store_true", help="never turn the wrist towards the cube"
    )
    parser.add_argument("--processes", type=scenes.count, help="simulations (one per core)")
    parser.add_argument("--resume", action="store_true", help="go on with the data set")
    scenes.add_arguments(parser)


def from_arguments(args: argparse.Namespace) -> DemosConfig:
    """Return what the flags of `add_arguments` say."""
    return DemosConfig(
        output=args.output,
        episodes=args.episodes,
        first_seed=args.first_seed,
        world=scenes.from_arguments(args),
        joint_noise_rad=args.joint_noise_rad,
        rearrange=args.rearrange,
        arm_rad_s=args.arm_rad_s,
        keep_wrist=args.keep_wrist,
        processes=args.processes or 0,
    )
