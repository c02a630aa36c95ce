"""What to evaluate, and how; the names of what is written. Values → a checked `EvaluateConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from crane_x7_vla_rl import fields
from crane_x7_vla_rl.data.reading import AS_STATED, Reading
from crane_x7_vla_rl.fields import Count, Index
from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.reserved import SWEEPS
from crane_x7_vla_rl.scenes import EVALUATION_SEED, Variation, WorldConfig
from crane_x7_vla_rl.timing import Timing
from crane_x7_vla_rl.training.errors import ConfigError

RESULTS, OFFLINE, VIDEOS = "results.json", "offline.parquet", "videos"
ALL_EPISODES = "all_episodes.parquet"


@dataclass(frozen=True)
class EvaluateConfig:
    """What to evaluate, and how."""

    model: ModelOptions
    output: Path
    world: WorldConfig = field(default_factory=WorldConfig)
    """Its control rate is replaced by the checkpoint's rate."""
    policy: str = "openvla"
    """Name of the policy, see policies/load.py."""
    num_episodes: Index = 200
    """Episodes in simulation; 0 skips it."""
    first_seed: int = EVALUATION_SEED
    """Seed of the first scene; episode n has seed first_seed + n."""
    swapped: bool = False
    """Name another cube's colour in the instruction than the one whose success is counted."""
    wordings: bool = False
    """Measure wordings that no training has seen, instead of --num-episodes; see wordings.py."""
    wording_episodes: Count = 5
    """Episodes per wording, each in the same scenes."""
    execute_steps: Count | None = None
    """Steps of each chunk to execute before the next prediction; default: all."""
    processes: Index = 0
    """Processes for the simulations; 0 for one per core."""
    slots: Count = 8
    """Scenes per process; also images per call of the policy."""
    videos: Index = 4
    """Number of episodes to film, from the first one."""
    data_root: str | None = None
    """Data set of recorded episodes; their actions are compared with the policy's, too."""
    reading: Reading = AS_STATED
    """How its files are read, where they do not say it: camera and units."""
    offline_frames: Count = 200
    """Number of recorded frames to compare."""
    offline_episodes: tuple[int, ...] = ()
    """Recorded episodes of which every frame is compared, in a parquet file per episode."""
    timing: Timing = field(default_factory=Timing)
    """How late, how often and how surely answers come."""
    sweep: tuple[str, ...] = ()
    """Names of the conditions to measure beside the baseline, see `sweep_conditions`."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where values come from, by name: given, default, or a file of the checkpoint."""

    def __post_init__(self) -> None:
        fields.check(self.timing, "timing.", ConfigError)
        fields.check(self.world.variation, "variation.", ConfigError)
        if self.sweep and (not self.num_episodes or self.data_root is not None):
            raise ConfigError(
                "--sweep measures episodes in simulation: set --num-episodes to 1 or more, and"
                " evaluate --data-root without --sweep"
            )
        varied = [
            each.name
            for each in SWEEPS
            if each.name in self.sweep and each.option.startswith("variation.")
        ]
        if self.world.vary and (varied or self.world.variation != Variation()):
            raise ConfigError(
                "--vary draws light, hue, lightness, size, friction and the camera's place for each"
                f" scene, so they cannot be set{' or swept' if varied else ''} as well; leave out"
                f" --vary{', or --sweep ' + ' '.join(varied) if varied else ''}"
            )
        if self.first_seed < EVALUATION_SEED:
            raise ConfigError(
                f"first seed {self.first_seed} may be a training scene's; evaluation uses seeds"
                f" of {EVALUATION_SEED} or more"
            )
        if self.wordings and (self.sweep or self.data_root is not None):
            raise ConfigError(
                "--wordings is measured alone: evaluate --sweep and --data-root without it"
            )
        if self.wordings and self.policy == "remote":
            raise ConfigError(
                "--wordings needs the policy's refusals, which a policy server tells only as"
                " errors; evaluate the served checkpoint itself with --checkpoint"
            )
        if self.swapped and len(self.world.colours) < 2:
            raise ConfigError(
                f"--swapped needs two colours to swap, --colours has {' '.join(self.world.colours)}"
            )
        if min(self.offline_episodes, default=0) < 0:
            raise ConfigError(
                f"--offline-episodes {min(self.offline_episodes)}: expected numbers of episodes,"
                " 0 for the first one"
            )
        if self.offline_episodes and self.data_root is None:
            raise ConfigError("--offline-episodes needs recorded episodes: set --data-root")
        if self.reading != AS_STATED and self.data_root is None:
            raise ConfigError(f"{self.reading.flags}: nothing is read; set --data-root")
        if not self.num_episodes and self.data_root is None:
            raise ConfigError("nothing to do: --num-episodes is 0 and --data-root is not set")
