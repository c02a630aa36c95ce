"""Configuration of `point`. Flags → `PointConfig`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from crane_x7_vla_rl import fields
from crane_x7_vla_rl.fields import Count, FinitePositive, Index, Share


@dataclass(frozen=True)
class PointConfig:
    """A model, and how long it learns to look."""

    model: str
    """Folder of the model to start from, such as one of the builder's, or a checkpoint of point."""
    output: Path
    """New folder for the checkpoint."""
    statistics: str | None = None
    """JSON file with the statistics that scale actions and joints, under the key crane_x7;
    default: the model's."""
    pictures: Count = 20_000
    """Pictures of random scenes."""
    vary: Share = 0.0
    """How much scenes differ from each other, as in `demos --vary`."""
    demos: str | None = None
    """Data set of demonstrations of chains of tasks (`demos --chain`); without it, the policy only
    learns the way to cubes and plate."""
    cache_mb: Count = 3_000
    """Memory for images of demonstrations, in MB."""
    updates: Index = 2_500
    """Updates of the towers; 0 for a checkpoint whose towers have learned."""
    move_updates: Count = 3_000
    """Updates of the language model and the head after that; the towers join in after 40 %, or at
    once where the head has learned."""
    learning_rate: FinitePositive = 1e-3
    """Peak of the learning rate of both."""
    seed: Index = 0
    """Of pictures and training."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `point`."""
    parser.add_argument("model", help="folder of the model to start from")
    parser.add_argument("output", type=Path, help="new folder for the checkpoint")
    fields.add_flags(parser, PointConfig, ("model", "output"), typed=True)


def from_arguments(args: argparse.Namespace) -> PointConfig:
    """Return the configuration from the flags of `add_arguments`."""
    return fields.from_flags(PointConfig, args)
