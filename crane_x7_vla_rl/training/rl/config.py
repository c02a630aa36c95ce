"""Every value of a reinforcement learning run. YAML, flags, overrides, by the loader → `RlConfig`.

Flags keep the names of the trainer that this one replaces; new ones follow its style. `template`
writes a whole configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final

from crane_x7_vla_rl.fields import (
    Amount,
    Count,
    FiniteAmount,
    FinitePositive,
    Index,
    Share,
    at_least,
    flag,
    size_text,
    within,
)
from crane_x7_vla_rl.policies.base import DEFAULT_UNNORM_KEY
from crane_x7_vla_rl.scenes import (
    COLOUR_NAMES,
    EVALUATION_SEED,
    PICK_PLACE_ID,
    Render,
    Variation,
    WorldConfig,
)
from crane_x7_vla_rl.timing import whole_steps
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
"""Seeds that training scenes never have."""


@dataclass(frozen=True)
class StartConfig:
    """Which policy learns."""

    pretrained: str = "openvla/openvla-7b"
    """Folder or Hub id (owner/name@revision) of the weights to start from."""
    sft_checkpoint: str | None = None
    """Folder or Hub id of a fine-tuned policy to start from, instead of pretrained; the usual
    start."""
    unnorm_key: str = DEFAULT_UNNORM_KEY
    """Key of the statistics that scale its actions."""
    statistics: str | None = None
    """JSON file with the statistics under that key; default: the model's own, otherwise the
    package's for this arm (crane_x7 only)."""

    @property
    def model(self) -> str:
        """The model that training starts from."""
        return self.sft_checkpoint or self.pretrained


@dataclass(frozen=True)
class VariationConfig(Variation, Section, section="env.variation"):
    """How the scenes differ from those that the policy's demonstrations showed; evaluations too."""


@dataclass(frozen=True)
class EnvConfig(Section, section="env"):
    """Task, scenes and simulator. Steps per second are the policy's own."""

    simulator: Simulator = "maniskill"
    """Simulator."""
    env_id: str = PICK_PLACE_ID
    """The task: Lift-CRANE-X7 or PickPlace-CRANE-X7."""
    backend: Backend = "gpu"
    """gpu: all scenes in one simulation on the GPU; cpu: scenes in processes."""
    render: Render = "auto"
    """Device that draws the images of the CPU backend. gpu: a CUDA GPU; cpu: Mesa; auto: a GPU if
    it can draw."""
    num_parallel_envs: Count = 4
    """Environments per training process; lower it if memory runs out."""
    processes: Index = flag("--env-processes", 0)
    """Processes for the scenes of the CPU backend; 0 for one per core."""
    groups: Count = flag("--env-groups", 2)
    """Groups of environments of the CPU backend: one group is simulated while the policy predicts
    for another."""
    rewards: RewardKind = "binary"
    """binary: 1 for success, which ends an episode; sparse: 1 where success holds at the end;
    dense: progress, step by step."""
    image_size: Annotated[str, size_text("320x240")] = flag("--camera-size", "320x240")
    """Width and height of the camera's images."""
    colours: str = ",".join(COLOUR_NAMES)
    """Colours of the cubes, separated by commas."""
    spawn_range_m: FiniteAmount = 0.03
    """Largest distance of cubes and plate from their four spots, along x and y."""
    home_noise_rad: FiniteAmount = 0.02
    """Standard deviation of noise on the arm's joints in the first step."""
    camera_shift_m: FiniteAmount = 0.0
    """Standard deviation of noise on the camera's position, sampled per episode."""
    camera_noise: FiniteAmount = 0.0
    """Standard deviation of noise on each pixel's channels, of 255, sampled per image."""
    vary: Share = 0.0
    """How much scenes differ from each other: light, the cubes' looks, size and friction, place of
    the camera; only the CPU backend can."""
    delay_s: Annotated[float, within(0, 2, "s")] = 0.0
    """Time from an image to the first step that uses its answer, rounded up to whole steps;
    evaluations too. Meanwhile the arm follows the prediction before."""
    least_delay_s: Annotated[float, within(0, 2, "s")] | None = None
    """Each episode of the rollouts draws its delay between this and delay_s; default: delay_s."""
    episode_s: FinitePositive | None = None
    """Longest episode in rollouts, in simulated seconds; default: the task's limit, as in
    evaluation. A shorter limit spends less time on failed attempts."""
    start_from: str | None = None
    """Folder of demonstrations, recorded by `demos` without noise in the same scenes: some episodes
    begin in the middle of one, mostly where the policy succeeds about half of the time."""
    start_share: Share = 0.5
    """Probability that an episode begins there rather than as the task does."""
    same_scene: Count = 1
    """Environments in a row whose episodes begin with the same scene; with grpo these are compared
    with each other, and with 1 all those of the same instruction."""
    deadline_s: FinitePositive = flag("--env-deadline-s", 60.0)
    """Timeout of a simulation; after it, the simulation is restarted."""
    variation: VariationConfig = field(default_factory=VariationConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        odd = [colour for colour in self.names or ("",) if colour not in COLOUR_NAMES]
        if odd:
            known = ", ".join(COLOUR_NAMES)
            raise ConfigError(f"env.colours has {odd[0]!r}; known: {known}; separate by commas")
        if self.least_delay_s is not None and self.least_delay_s > self.delay_s:
            raise ConfigError(
                f"env.least_delay_s is {self.least_delay_s:g}, expected at most env.delay_s,"
                f" {self.delay_s:g}"
            )
        self.vector(control_hz=10, seed=0, first_env=0)
        if (self.vary or self.variation != VariationConfig()) and (
            (self.backend, self.simulator) != ("cpu", "maniskill")
        ):
            raise ConfigError(
                "env.vary or env.variation is set, but only scenes in processes can vary; set"
                " env.backend to cpu and env.simulator to maniskill, or leave it out"
            )
        if self.start_from is not None and (self.backend, self.simulator) != ("cpu", "maniskill"):
            raise ConfigError(
                "env.start_from is set, but only scenes in processes can repeat a demonstration;"
                " set env.backend to cpu and env.simulator to maniskill, or leave it out"
            )

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
            render=self.render,
            vary=self.vary,
            variation=Variation(**asdict(self.variation)),
        )

    def vector(self, control_hz: int, seed: int, first_env: int) -> VectorConfig:
        """Return the environments of one process; raises ConfigError, with the nearest names."""
        least_s = self.least_delay_s
        try:
            return VectorConfig(
                world=self.world(control_hz),
                num_envs=self.num_parallel_envs,
                backend=self.backend,
                simulator=self.simulator,
                processes=self.processes,
                delay=whole_steps(self.delay_s * control_hz),
                least_delay=None if least_s is None else whole_steps(least_s * control_hz),
                first_seed=seed,
                first_env=first_env,
                same_scene=self.same_scene,
                rewards=Rewards(self.rewards),
                groups=self.groups,
                deadline_s=self.deadline_s,
            )
        except VectorConfigError as error:
            raise ConfigError(f"env: {error}") from error


@dataclass(frozen=True)
class RlLoraConfig(LoraConfig):
    """As in fine-tuning, but without dropout: updates must see what rollouts saw."""

    dropout: float = flag("--lora-dropout", 0.0)
    """Must be 0 in reinforcement learning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dropout:
            raise ConfigError(
                f"lora.dropout is {self.dropout}, expected 0: an update would compute other"
                " probabilities than the rollout it learns from"
            )


@dataclass(frozen=True)
class RlScheduleConfig(Section, section="training"):
    """How long."""

    num_updates: Count = 1000
    """Number of updates; each learns from one rollout."""
    rollout_steps: Count = 64
    """Decisions per environment and rollout; a prediction of several steps is one."""
    execute_steps: Count | None = None
    """Steps of each prediction that are executed before the next; default: all. Fewer: closer to a
    loop that predicts often, at more predictions per episode."""
    time_limit_minutes: Amount | None = None
    """Save and end after this time, even if num_updates is not reached."""
    anneal: bool = False
    """Lower both learning rates linearly, to 0 after num_updates."""
    rollout_batch: Count | None = None
    """Most environments whose actions are predicted together, in whole groups; default: half of
    them on CUDA, a group on a CPU. All of them: larger passes, but nothing is simulated meanwhile;
    lower it if memory runs out."""
    head_only: bool = False
    """Only OpenVLA-OFT's head learns, without adapters: an update starts from what the head read in
    the rollout, and computes nothing below it."""
    keep_patches: bool = False
    """Keep the vision model's outputs from rollout to update, if vision does not learn: faster, but
    needs memory of rollout_steps × environments × patches × hidden size."""


@dataclass(frozen=True)
class RlTrainingConfig(ComputeConfig, RlScheduleConfig):
    """How long, and on what."""


@dataclass(frozen=True)
class RlEvaluationConfig(Section, section="evaluation"):
    """Evaluation during training, on scenes that the policy never learns from."""

    every: Index = flag("--evaluate-every", 50)
    """Updates between evaluations; 0: none, no checkpoint_best."""
    episodes: Count = flag("--evaluate-episodes", 50)
    """Episodes of each evaluation."""
    temperature: Amount = flag("--evaluate-temperature", 0.0)
    """Sampling temperature; 0: the most likely action."""
    videos: Index = flag("--evaluate-videos", 2)
    """Number of episodes to film, from the first one."""
    first_seed: EvaluationSeed = flag("--evaluate-first-seed", EVALUATION_SEED)
    """Seed of the first scene."""


@dataclass(frozen=True)
class RlOutputConfig(Section, section="output"):
    """Where results go."""

    dir: str = flag("--output-dir", OUTPUT_ROOT)
    """Folder of runs; a run's folder is <folder>/<name>. Also OUTPUT_ROOT."""
    experiment_name: str = NAME
    """Name of the run."""
    save_every: Count = 50
    """Updates between checkpoints."""
    keep: Count | None = None
    """Number of newest numbered checkpoints to keep; default: all."""


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
        if self.ppo.ref_kl_target is not None and not self.ppo.kl_coefficient:
            raise ConfigError(
                f"ppo.ref_kl_target is {self.ppo.ref_kl_target}, but ppo.kl_coefficient is 0, which"
                " cannot be doubled; set it to the coefficient to begin with, such as 0.01"
            )
        if self.ppo.kl_coefficient and not (self.lora.enabled or self.training.head_only):
            raise ConfigError(
                f"ppo.kl_coefficient is {self.ppo.kl_coefficient}, but lora.enabled is false: the"
                " start is only kept below adapters; set ppo.kl_coefficient to 0"
            )
        value = self.ppo.value
        if self.ppo.algorithm == "grpo" and (value.warmup or value.extra_epochs):
            raise ConfigError(
                f"ppo.value.warmup is {value.warmup} and ppo.value.extra_epochs"
                f" {value.extra_epochs}, but grpo has no critic; set both to 0"
            )
        if self.training.head_only:
            object.__setattr__(self, "lora", replace(self.lora, enabled=False))
        if self.ppo.algorithm == "grpo" and self.env.start_from is not None:
            raise ConfigError(
                "env.start_from is set, but grpo compares episodes that begin alike; leave it out,"
                " or set ppo.algorithm to ppo"
            )
        if self.sees_true_state and self.env.simulator == "genesis":
            raise ConfigError(
                "ppo.value.critic is state, but Genesis has no true state for it; set it to own, or"
                " env.simulator to maniskill"
            )

    @property
    def sees_true_state(self) -> bool:
        """Whether the simulator tells a critic what no policy sees."""
        return self.ppo.algorithm == "ppo" and self.ppo.value.critic == "state"

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
"""What `config --template` changes from the defaults. fast: a check of the installation, in
minutes; full: a real run, on a GPU with 80 GB."""


def template(name: str, below: Sequence[Layer] = ()) -> str:
    """Return a whole configuration as YAML; `below` may set values that the template does not."""
    wanted = [*below, Layer(name, TEMPLATES[name])]
    return loader.to_yaml(loader.build(RlConfig, wanted))
