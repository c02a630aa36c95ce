"""Every value of a reinforcement learning run. YAML, flags, overrides, by the loader → `RlConfig`.

Flags keep names of the trainer that this one replaces; new ones follow its manner. `template`
writes a whole configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

from crane_x7_vla_rl.fields import (
    Amount,
    Count,
    FiniteAmount,
    FinitePositive,
    Index,
    at_least,
    flag,
    size_text,
)
from crane_x7_vla_rl.policies.base import DEFAULT_UNNORM_KEY
from crane_x7_vla_rl.scenes import COLOUR_NAMES, EVALUATION_SEED, PICK_PLACE_ID, WorldConfig
from crane_x7_vla_rl.training.config import loader
from crane_x7_vla_rl.training.config.loader import Layer
from crane_x7_vla_rl.training.config.sections import (
    ComputeConfig,
    LoggingConfig,
    LoraConfig,
    PublishConfig,
    Section,
    check_publishing,
)
from crane_x7_vla_rl.training.errors import ConfigError
from crane_x7_vla_rl.training.rl.ppo_config import PpoConfig
from crane_x7_vla_rl.variables import OUTPUT_ROOT
from crane_x7_vla_rl.vector_config import (
    Backend,
    RewardKind,
    Rewards,
    Simulator,
    VectorConfig,
    VectorConfigError,
)

NAME: Final = "crane_x7_vla_rl"
EvaluationSeed = Annotated[int, at_least(EVALUATION_SEED)]
"""None that a scene to learn from may have."""


@dataclass(frozen=True)
class StartConfig:
    """Which policy learns."""

    pretrained: str = "openvla/openvla-7b"
    """Folder or Hub id (owner/name@revision) of the weights to start from."""
    sft_checkpoint: str | None = None
    """Folder or Hub id of a fine-tuned policy to start from, instead of pretrained; the usual
    case."""
    unnorm_key: str = DEFAULT_UNNORM_KEY
    """Key of the statistics that scale its actions."""
    statistics: str | None = None
    """JSON file with the statistics under that key; not given, the model's own, and where it has
    none under crane_x7, those of this arm that come with the package."""

    @property
    def model(self) -> str:
        """The one that counts."""
        return self.sft_checkpoint or self.pretrained


@dataclass(frozen=True)
class EnvConfig(Section, section="env"):
    """What is simulated, how often, and by what. Steps per second are the policy's own."""

    simulator: Simulator = "maniskill"
    """What simulates."""
    env_id: str = PICK_PLACE_ID
    """The task: Lift-CRANE-X7 or PickPlace-CRANE-X7."""
    backend: Backend = "gpu"
    """gpu: all scenes in one simulation there; cpu: scenes in processes."""
    num_parallel_envs: Count = 4
    """Environments of each process of the training. Lower it where memory runs out."""
    processes: Index = flag("--env-processes", 0)
    """That the scenes of the CPU backend are spread over; 0 for one per core."""
    groups: Count = flag("--env-groups", 2)
    """In so many groups the environments of the CPU backend take turns: one is simulated while the
    policy looks at another."""
    rewards: RewardKind = "binary"
    """binary: 1 for success, which ends an episode; sparse: 1 where success holds at the end;
    dense: progress, step by step."""
    image_size: Annotated[str, size_text("320x240")] = flag("--camera-size", "320x240")
    """Width and height of the camera's pictures."""
    colours: str = ",".join(COLOUR_NAMES)
    """Of the cubes, separated by commas."""
    spawn_range_m: FiniteAmount = 0.03
    """Cubes and plate lie at most this far, along x and y, from their four spots."""
    home_noise_rad: FiniteAmount = 0.02
    """Standard deviation of the arm's joints in the first step."""
    camera_shift_m: FiniteAmount = 0.0
    """Standard deviation of the camera's place, sampled per episode."""
    camera_noise: FiniteAmount = 0.0
    """Standard deviation of each pixel's channels, of 255, sampled per picture."""
    episode_s: FinitePositive | None = None
    """How long an episode of the rollouts may take, in simulated seconds; not given, as long as the
    task's do in evaluation. A shorter one wastes less on tries that have failed."""
    deadline_s: FinitePositive = flag("--env-deadline-s", 60.0)
    """A simulation that has not answered by then counts as hung and is restarted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        odd = [colour for colour in self.names or ("",) if colour not in COLOUR_NAMES]
        if odd:
            known = ", ".join(COLOUR_NAMES)
            raise ConfigError(f"env.colours has {odd[0]!r}, known: {known}; separate by commas")
        self.vector(control_hz=10, seed=0, first_env=0)

    @property
    def names(self) -> tuple[str, ...]:
        """The colours."""
        return tuple(self.colours.replace(",", " ").split())

    def world(self, control_hz: int) -> WorldConfig:
        """Return what one scene is."""
        width, _, height = self.image_size.partition("x")
        return WorldConfig(
            task=self.env_id,
            control_hz=control_hz,
            image_size=(int(width), int(height)),
            colours=self.names,
            spawn_range_m=self.spawn_range_m,
            home_noise_rad=self.home_noise_rad,
            camera_shift_m=self.camera_shift_m,
            camera_noise=self.camera_noise,
            episode_s=self.episode_s,
        )

    def vector(self, control_hz: int, seed: int, first_env: int) -> VectorConfig:
        """Return the environments of one process; raises ConfigError, with the nearest names."""
        try:
            return VectorConfig(
                world=self.world(control_hz),
                num_envs=self.num_parallel_envs,
                backend=self.backend,
                simulator=self.simulator,
                processes=self.processes,
                first_seed=seed,
                first_env=first_env,
                rewards=Rewards(self.rewards),
                groups=self.groups,
                deadline_s=self.deadline_s,
            )
        except VectorConfigError as error:
            raise ConfigError(f"env: {error}") from error


@dataclass(frozen=True)
class RlLoraConfig(LoraConfig):
    """As in fine-tuning, but nothing is dropped: updates must see what rollouts saw."""

    dropout: float = flag("--lora-dropout", 0.0)
    """Must stay 0 here."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dropout:
            raise ConfigError(
                f"lora.dropout is {self.dropout}, expected 0: an update would see other"
                " probabilities than the rollout it learns from"
            )


@dataclass(frozen=True)
class RlScheduleConfig(Section, section="training"):
    """How long."""

    num_updates: Count = 1000
    """Rollouts that are learned from."""
    rollout_steps: Count = 64
    """Decisions per environment and rollout; an answer of several steps is one."""
    time_limit_minutes: Amount | None = None
    """Save and end after this time, even before num_updates."""
    anneal: bool = False
    """Lower both learning rates from update to update, to 0 after num_updates."""
    keep_patches: bool = False
    """Keep what vision made of the pictures from rollout to update, where vision does not learn:
    faster, for the memory of rollout_steps × environments × patches × hidden size."""


@dataclass(frozen=True)
class RlTrainingConfig(ComputeConfig, RlScheduleConfig):
    """How long, and on what."""


@dataclass(frozen=True)
class RlEvaluationConfig(Section, section="evaluation"):
    """How well the policy does on scenes that it never learns from, on the way."""

    every: Index = flag("--evaluate-every", 50)
    """Updates from evaluation to evaluation; 0 for none, and then no checkpoint_best."""
    episodes: Count = flag("--evaluate-episodes", 50)
    """Of each evaluation."""
    temperature: Amount = flag("--evaluate-temperature", 0.0)
    """0 takes the likeliest action."""
    videos: Index = flag("--evaluate-videos", 2)
    """So many of the first episodes are filmed."""
    first_seed: EvaluationSeed = flag("--evaluate-first-seed", EVALUATION_SEED)
    """Of the scenes."""


@dataclass(frozen=True)
class RlOutputConfig(Section, section="output"):
    """Where results go."""

    dir: str = flag("--output-dir", OUTPUT_ROOT)
    """Folder of runs; this one's has its name. The variable OUTPUT_ROOT sets it, too."""
    experiment_name: str = NAME
    """Name of the run."""
    save_every: Count = 50
    """Updates from checkpoint to checkpoint."""
    keep: Count | None = None
    """How many numbered checkpoints stay, the newest; all where it is not given."""


@dataclass(frozen=True)
class RlConfig:
    """One run."""

    start: StartConfig = field(default_factory=StartConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    training: RlTrainingConfig = field(default_factory=RlTrainingConfig)
    ppo: PpoConfig = field(default_factory=PpoConfig)
    lora: RlLoraConfig = field(default_factory=RlLoraConfig)
    evaluation: RlEvaluationConfig = field(default_factory=RlEvaluationConfig)
    output: RlOutputConfig = field(default_factory=RlOutputConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)

    def __post_init__(self) -> None:
        check_publishing(self.publish, self.logging)

    @property
    def experiment_name(self) -> str:
        """Name of the run."""
        return self.output.experiment_name

    @property
    def output_dir(self) -> Path:
        """Folder of the run."""
        return Path(self.output.dir).expanduser() / self.output.experiment_name

    @property
    def wandb_project(self) -> str:
        """Project at W&B."""
        return self.logging.wandb_project or "crane-x7-vla-rl"


TEMPLATES: Final[Mapping[str, Mapping[str, Any]]] = {
    "default": {},
    "fast": {
        "env.env_id": "Lift-CRANE-X7",
        "env.backend": "cpu",
        "env.num_parallel_envs": 2,
        "training.num_updates": 10,
        "training.rollout_steps": 16,
        "ppo.minibatch_size": 16,
        "ppo.micro_batch_size": 4,
        "ppo.epochs": 1,
        "lora.rank": 8,
        "lora.alpha": 16,
        "evaluation.every": 5,
        "evaluation.episodes": 4,
        "output.save_every": 5,
        "logging.log_steps": 1,
    },
    "full": {
        "env.num_parallel_envs": 64,
        "training.num_updates": 2000,
        "training.rollout_steps": 80,
        "training.gradient_checkpointing": True,
        "ppo.minibatch_size": 640,
        "ppo.micro_batch_size": 20,
        "ppo.epochs": 1,
        "ppo.old_log_probs": "recomputed",
        "ppo.value.learning_rate": 3e-3,
        "evaluation.every": 25,
        "evaluation.episodes": 200,
        "output.save_every": 25,
        "logging.log_steps": 1,
        "logging.use_wandb": True,
    },
}
"""What `config --template` writes differently from the defaults: to see that all works, in minutes;
to learn in earnest, on a GPU with 80 GB."""


def template(name: str, below: Sequence[Layer] = ()) -> str:
    """Return a whole configuration as YAML; what it leaves at its default, `below` may change."""
    wanted = [*below, Layer(name, TEMPLATES[name])]
    return loader.to_yaml(loader.build(RlConfig, wanted))
