"""What to evaluate, and how; the names of what is written. Values → a checked `EvaluateConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from crane_x7_vla_rl.fields import Count, Index
from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.scenes import EVALUATION_SEED, WorldConfig
from crane_x7_vla_rl.training.errors import ConfigError

RESULTS, OFFLINE, VIDEOS = "results.json", "offline.parquet", "videos"


@dataclass(frozen=True)
class EvaluateConfig:
    """What to evaluate, and how."""

    model: ModelOptions
    output: Path
    world: WorldConfig = field(default_factory=WorldConfig)
    """Its control rate is replaced by the checkpoint's."""
    num_episodes: Index = 200
    """Episodes in simulation; 0 skips it."""
    first_seed: int = EVALUATION_SEED
    """Of the scenes."""
    swapped: bool = False
    """Tell the policy another cube's colour than the one that counts."""
    execute_steps: Count | None = None
    """Steps of each chunk that are carried out before the policy looks again; not given, all."""
    processes: Index = 0
    """Simulations beside the policy; 0 for one per core."""
    slots: Count = 8
    """Scenes per process, and images per call of the policy."""
    videos: Index = 4
    """So many of the first episodes are filmed."""
    data_root: str | None = None
    """Recorded episodes to compare actions with, too."""
    offline_frames: Count = 200
    """Of recorded episodes, to compare."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where values come from, by name: given, default, or a file of the checkpoint."""

    def __post_init__(self) -> None:
        if self.first_seed < EVALUATION_SEED:
            raise ConfigError(
                f"first seed {self.first_seed} may have been trained on; evaluation takes seeds"
                f" from {EVALUATION_SEED} on"
            )
        if self.swapped and len(self.world.colours) < 2:
            raise ConfigError(
                f"--swapped needs two colours to swap, --colours has {' '.join(self.world.colours)}"
            )
        if not self.num_episodes and self.data_root is None:
            raise ConfigError("nothing to do: --num-episodes is 0 and there is no --data-root")
