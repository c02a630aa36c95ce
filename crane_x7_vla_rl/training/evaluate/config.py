"""What to evaluate, and how; the names of what is written. Values → a checked `EvaluateConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

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
    num_episodes: int = 200
    """0 skips the simulation."""
    first_seed: int = EVALUATION_SEED
    swapped: bool = False
    """Tell the policy another cube's colour."""
    execute_steps: int | None = None
    """Steps of each chunk that are carried out before the policy looks again; None: all."""
    processes: int = 0
    """Simulations beside the policy; 0 for one per core."""
    slots: int = 8
    """Scenes per process, and images per call of the policy."""
    videos: int = 4
    """So many of the first episodes are filmed."""
    data_root: str | None = None
    """Recorded episodes to compare actions with."""
    offline_frames: int = 200

    def __post_init__(self) -> None:
        if self.first_seed < EVALUATION_SEED:
            raise ConfigError(
                f"first seed {self.first_seed} may have been trained on; evaluation takes seeds"
                f" from {EVALUATION_SEED} on"
            )
        if self.swapped and len(self.world.colours) < 2:
            raise ConfigError(
                f"--swapped needs two colours to swap, --colours has {self.world.colours}"
            )
        if not self.num_episodes and self.data_root is None:
            raise ConfigError("nothing to do: --num-episodes is 0 and there is no --data-root")
