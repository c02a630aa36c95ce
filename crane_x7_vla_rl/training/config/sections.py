"""Sections that the configurations of both trainers share. Values → frozen, checked dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from crane_x7_vla_rl import fields
from crane_x7_vla_rl.fields import BARE, Bound, Count, Index, flag
from crane_x7_vla_rl.training.errors import ConfigError

Moment = Literal["no", "end", "every-save"]
"""When checkpoints are published."""
DropoutShare = Annotated[float, Bound(lambda share: 0 <= share < 1, "0 or more and below 1")]


class Section:
    """Part of a configuration; raises ConfigError for a value out of its field's range."""

    section: ClassVar[str]
    """Its dotted key, for messages."""

    def __init_subclass__(cls, section: str = "") -> None:
        cls.section = section or cls.section

    def __post_init__(self) -> None:
        fields.check(self, f"{self.section}.", ConfigError)


@dataclass(frozen=True)
class ComputeConfig(Section, section="training"):
    """The device of a run, and how it computes. First among the bases: last section of a file."""

    gradient_checkpointing: bool = False
    """Recompute layers in the backward pass instead of keeping their activations."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Data type of matrix products; auto: bf16 on CUDA, fp32 elsewhere."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Device; auto: CUDA if available, otherwise the CPU."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """With several processes: a whole model in each, or its weights spread over all."""
    seed: Index = 0
    """Seed of all random numbers: data or scenes, order, sampled actions, new weights, dropout."""


@dataclass(frozen=True)
class LoraConfig(Section, section="lora"):
    """LoRA: small trained matrices next to the frozen weights."""

    enabled: bool = flag("--use-lora", True)
    """Train adapters; without them, all weights."""
    rank: Count = flag("--lora-rank", 32)
    """Inner size of an adapter."""
    alpha: Count = flag("--lora-alpha", 64)
    """Scale of an adapter: its output is multiplied by alpha / rank."""
    dropout: DropoutShare = flag("--lora-dropout", 0.1)
    """Share of an adapter's inputs that are dropped in training."""
    targets: str = flag("--lora-targets", "all-linear")
    """Ends of module names, separated by commas, or every linear layer that the model reads."""


@dataclass(frozen=True)
class LoggingConfig(Section, section="logging"):
    """Where progress is shown."""

    log_steps: Count = 10
    """Updates between log lines; metrics.jsonl has every update."""
    tensorboard: bool = True
    """Write event files into <output>/tensorboard."""
    use_wandb: bool = False
    """Report to Weights & Biases; WANDB_MODE=offline works."""
    wandb_project: str | None = None
    """Project at W&B; default: crane-x7-<backend>."""
    wandb_entity: str | None = None
    """User or team at W&B."""


@dataclass(frozen=True)
class PublishConfig(Section, section="publish"):
    """Whether checkpoints are uploaded, and where to."""

    push_to_hub: Moment = field(default="no", metadata={BARE: "end"})
    """Upload checkpoints to the Hub: at the end (also the flag alone) or at every save."""
    hub_model_id: str | None = None
    """owner/name on the Hub; created (private) if new."""
    wandb_artifacts: Moment = field(default="no", metadata={BARE: "end"})
    """Upload checkpoints as W&B artifacts; needs --use-wandb."""

    def __post_init__(self) -> None:
        if self.push_to_hub != "no" and not self.hub_model_id:
            raise ConfigError("publish.hub_model_id is not set; --push-to-hub needs --hub-model-id")


def check_publishing(publish: PublishConfig, logging: LoggingConfig) -> None:
    """Raise ConfigError for artifacts without W&B."""
    if publish.wandb_artifacts != "no" and not logging.use_wandb:
        raise ConfigError("publish.wandb_artifacts needs logging.use_wandb; add --use-wandb")
