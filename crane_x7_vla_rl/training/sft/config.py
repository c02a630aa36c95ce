"""What a fine-tuning run is told: every value, default and unit in one place.

`config_tree` makes a `SftConfig` of a YAML file, flags and overrides. Names and defaults of flags
are those of the trainer that this one replaces; what it did not have follows its manner.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from crane_x7_vla_rl.training.config.loader import BARE, FLAG
from crane_x7_vla_rl.training.errors import ConfigError

OUTPUTS: Final = "/workspace/outputs"

Moment = Literal["no", "end", "every-save"]
"""When checkpoints are published."""


def flag(name: str, default: Any) -> Any:
    """Return a field whose flag is `name`."""
    return field(default=default, metadata={FLAG: name})


def at_least(section: object, prefix: str, low: float, *names: str) -> None:
    """Raise ConfigError for the first of these fields that is below `low`; None passes."""
    for name in names:
        value = getattr(section, name)
        if value is not None and value < low:
            raise ConfigError(f"{prefix}.{name} is {value}, expected {low:g} or more")


@dataclass(frozen=True)
class DataConfig:
    """Where demonstrations come from."""

    root: str = flag("--data-root", "/workspace/data/tfrecord_logs")
    """Folder with TFRecord logs, a LeRobot data set or rosbags, or a LeRobot data set's Hub id."""
    instruction: str = "Pick and place the object"
    """What to do, for episodes that do not say so themselves."""
    image_size: str = "224x224"
    """Width and height of what the model reads, images of any size are squashed to it."""
    workers: int = flag("--data-workers", 2)
    """Threads that decode images ahead of time."""
    cache_mb: int = flag("--data-cache-mb", 1024)
    """Memory for decoded images."""
    corrupt: Literal["raise", "skip"] = flag("--corrupt-data", "raise")
    """What an image does that cannot be read: end the run, or give way to another."""

    def __post_init__(self) -> None:
        at_least(self, "data", 1, "workers")
        at_least(self, "data", 0, "cache_mb")
        if not re.fullmatch(r"\d+x\d+", self.image_size):
            raise ConfigError(f"data.image_size is {self.image_size}, expected as in 224x224")


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how fast, in how much memory."""

    batch_size: int = 16
    """Samples per process and micro-batch."""
    num_epochs: int = 100
    """How often every frame is seen."""
    max_steps: int | None = None
    """Updates after which training ends, whatever num_epochs says."""
    stop_after: int | None = None
    """Updates after which this run stops and saves, as SIGTERM would make it, on the way to its
    end: for a policy that has learned half of it. One that goes on from there does not."""
    learning_rate: float = 5e-4
    """Peak of the cosine."""
    warmup_ratio: float = 0.1
    """Share of the steps in which the learning rate rises to its peak."""
    weight_decay: float = 0.01
    """Of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients longer than this are shortened to it."""
    bin_smoothing: float = 0.0
    """Standard deviation of the first target around the demonstrated bin, in bins of 256; it falls
    to 0 in the middle of the run. Small models that learn from nothing need some 6: that bins are
    near each other is most of what there is to learn at first."""
    grad_accumulation_steps: int = 1
    """Micro-batches per update."""
    gradient_checkpointing: bool = False
    """Compute layers again in the backward pass instead of keeping what they computed."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the matrix products; auto is bf16 on CUDA, fp32 elsewhere."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto is CUDA where there is one."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """With several processes: a whole model in each, or its weights spread over all."""
    seed: int = 0
    """Of the order of the data, augmentation, adapters and dropout."""

    def __post_init__(self) -> None:
        at_least(self, "training", 1, "batch_size", "num_epochs", "grad_accumulation_steps")
        at_least(self, "training", 1, "max_steps", "stop_after")
        at_least(self, "training", 0, "learning_rate", "weight_decay", "warmup_ratio", "seed")
        at_least(self, "training", 0, "bin_smoothing")
        if self.warmup_ratio > 1:
            raise ConfigError(f"training.warmup_ratio is {self.warmup_ratio}, expected 0 to 1")
        if self.max_grad_norm <= 0:
            raise ConfigError(f"training.max_grad_norm is {self.max_grad_norm}, expected above 0")


@dataclass(frozen=True)
class LoraConfig:
    """Small matrices beside the frozen weights, instead of the weights themselves."""

    enabled: bool = flag("--use-lora", True)
    """Train adapters; without them, all weights."""
    rank: int = flag("--lora-rank", 32)
    """Inner size of an adapter."""
    alpha: int = flag("--lora-alpha", 64)
    """An adapter counts alpha / rank."""
    dropout: float = flag("--lora-dropout", 0.1)
    """Share of an adapter's inputs that are dropped in training."""
    targets: str = flag("--lora-targets", "all-linear")
    """Ends of module names, separated by commas, or every linear layer that the model reads."""

    def __post_init__(self) -> None:
        at_least(self, "lora", 1, "rank", "alpha")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout is {self.dropout}, expected 0 or more and below 1")


@dataclass(frozen=True)
class PolicyConfig:
    """What the policy reads besides one image, and how much it says at once."""

    model: str = "openvla/openvla-7b"
    """Folder or Hub id (owner/name@revision) of the weights to start from."""
    state_tokens: bool | None = None
    """Show the model the measured joints, as eight tokens behind the instruction; not given, as the
    model's own policy.json says."""
    chunk_steps: int | None = None
    """Steps that the model predicts at once; not given, as the model's own policy.json says."""

    def __post_init__(self) -> None:
        at_least(self, "policy", 1, "chunk_steps")


@dataclass(frozen=True)
class AugmentationConfig:
    """How images are varied, so that the policy does not learn one room by heart."""

    crop: bool = flag("--random-crop", True)
    """Show 90 % of the area, anywhere; the policy then sees the centre's 90 %."""
    colour: float = flag("--colour-jitter", 1.0)
    """Strength of random brightness, contrast, saturation and hue; 0 for none, 1 as OpenVLA."""

    def __post_init__(self) -> None:
        at_least(self, "augmentation", 0, "colour")


@dataclass(frozen=True)
class OutputConfig:
    """Where results go."""

    experiment_name: str | None = None
    """Name of the run; crane_x7_<backend> where it is not given."""
    dir: str | None = flag("--output-dir", None)
    """Folder of the run; /workspace/outputs/<experiment_name> where it is not given."""
    save_steps: int = 500
    """Updates from checkpoint to checkpoint."""
    keep: int | None = None
    """How many checkpoints stay, the newest; all where it is not given."""

    def __post_init__(self) -> None:
        at_least(self, "output", 1, "save_steps", "keep")


@dataclass(frozen=True)
class LoggingConfig:
    """Who is told how training goes."""

    log_steps: int = 10
    """Updates from log line to log line; every update is in metrics.jsonl."""
    tensorboard: bool = True
    """Write event files into <output>/tensorboard."""
    use_wandb: bool = False
    """Report to Weights & Biases; WANDB_MODE=offline works."""
    wandb_project: str | None = None
    """Project there; crane-x7-<backend> where it is not given."""
    wandb_entity: str | None = None
    """User or team there."""

    def __post_init__(self) -> None:
        at_least(self, "logging", 1, "log_steps")


@dataclass(frozen=True)
class PublishConfig:
    """Whether checkpoints are uploaded, and where to."""

    push_to_hub: Moment = field(default="no", metadata={BARE: "end"})
    """Upload checkpoints to the Hub: at the end (also the flag alone) or at every save."""
    hub_model_id: str | None = None
    """owner/name on the Hub; made, private, where it does not exist."""
    wandb_artifacts: Moment = field(default="no", metadata={BARE: "end"})
    """Upload checkpoints as W&B artifacts; needs --use-wandb."""

    def __post_init__(self) -> None:
        if self.push_to_hub != "no" and not self.hub_model_id:
            raise ConfigError("publish.hub_model_id is not set; --push-to-hub needs --hub-model-id")


@dataclass(frozen=True)
class SftConfig:
    """One fine-tuning run."""

    backend: Literal["openvla", "openpi"]
    """Which kind of policy is trained; openpi comes later."""
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)

    def __post_init__(self) -> None:
        if self.publish.wandb_artifacts != "no" and not self.logging.use_wandb:
            raise ConfigError("publish.wandb_artifacts needs logging.use_wandb; add --use-wandb")

    @property
    def experiment_name(self) -> str:
        """Name of the run."""
        return self.output.experiment_name or f"crane_x7_{self.backend}"

    @property
    def output_dir(self) -> Path:
        """Folder of the run."""
        return Path(self.output.dir or f"{OUTPUTS}/{self.experiment_name}").expanduser()

    @property
    def wandb_project(self) -> str:
        """Project at W&B."""
        return self.logging.wandb_project or f"crane-x7-{self.backend}"
