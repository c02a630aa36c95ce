"""Every value of a fine-tuning run. YAML, flags and overrides, through the loader → `SftConfig`.

Flags keep names and defaults of the trainer that this one replaces; new ones follow its style.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from crane_x7_vla_rl.data.loader.selection import Choice, Interventions
from crane_x7_vla_rl.data.reading import Reading, Unit
from crane_x7_vla_rl.fields import Amount, Count, Index, Positive, Share, flag, size_text, within
from crane_x7_vla_rl.training.config.sections import (
    ComputeConfig,
    LoggingConfig,
    LoraConfig,
    PublishConfig,
    Section,
    check_publishing,
)
from crane_x7_vla_rl.training.errors import ConfigError
from crane_x7_vla_rl.variables import OUTPUT_ROOT


@dataclass(frozen=True)
class DataConfig(Section, section="data"):
    """Where demonstrations come from."""

    root: str = flag("--data-root", "/workspace/data/tfrecord_logs")
    """Folder with TFRecord logs, a LeRobot data set or rosbags, or a LeRobot data set's Hub id."""
    more: tuple[str, ...] = flag("--more-data", ())
    """Further data sets to learn from together with the first, at the same rate."""
    instruction: str = "Pick and place the object"
    """Instruction for episodes that contain none."""
    camera: str | None = flag("--camera", None)
    """Camera of a LeRobot data set that has several, such as wrist."""
    unit: Unit | None = flag("--unit", None)
    """Unit of the joints of a LeRobot data set; none: rad, refused if the values cannot be."""
    gripper_unit: Unit | None = flag("--gripper-unit", None)
    """Unit of its gripper; none: that of the arm."""
    interventions: Interventions = flag("--interventions", "with")
    """Frames in which a person acted while a policy drove (see `infer --record`): train with them,
    on them only, or without them."""
    intervention_weight: Annotated[float, within(0.01, 100)] = flag("--intervention-weight", 1.0)
    """How often such a frame is used in an epoch (DAgger); any other frame is used once."""
    image_size: Annotated[str, size_text("224x224")] = "224x224"
    """Width and height of the model's images; images of other sizes are resized to it."""
    workers: Count = flag("--data-workers", 2)
    """Threads that decode images ahead of time."""
    cache_mb: Index = flag("--data-cache-mb", 1024)
    """Memory for decoded images."""
    corrupt: Literal["raise", "skip"] = flag("--corrupt-data", "raise")
    """raise: an unreadable image ends the run; skip: it is replaced by another."""

    def __post_init__(self) -> None:
        if self.interventions != "with" and self.intervention_weight != 1:
            raise ConfigError(
                f"data.intervention_weight is {self.intervention_weight:g}, and data.interventions"
                f" is {self.interventions}: a weight needs both kinds of frames; leave one out"
            )

    @property
    def choice(self) -> Choice:
        """Which frames are used, and how often."""
        return Choice(self.interventions, self.intervention_weight)

    @property
    def reading(self) -> Reading:
        """How a LeRobot data set is read."""
        return Reading(self.camera, self.unit, self.gripper_unit)


@dataclass(frozen=True)
class ScheduleConfig(Section, section="training"):
    """How long, and how fast."""

    batch_size: Count = 16
    """Samples per process and micro-batch."""
    num_epochs: Count = 100
    """Number of passes over all frames."""
    max_steps: Count | None = None
    """Updates after which training ends, regardless of num_epochs."""
    stop_after: Count | None = None
    """Updates after which this run saves and stops early, as after SIGTERM: for a half-trained
    policy. A run that resumes from there ignores it."""
    learning_rate: Amount = 5e-4
    """Peak of the learning rate."""
    warmup_ratio: Share = 0.1
    """Share of the updates in which the learning rate rises to its peak."""
    weight_decay: Amount = 0.01
    """Weight decay of AdamW."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm."""
    bin_smoothing: Amount = 0.0
    """Standard deviation of the first target around the demonstrated bin, in bins of 256; it falls
    to 0 in the middle of the run. Small models that start untrained need about 6: at first they
    mostly learn which bins are near each other."""
    grad_accumulation_steps: Count = 1
    """Micro-batches per update."""


@dataclass(frozen=True)
class TrainingConfig(ComputeConfig, ScheduleConfig):
    """How long, how fast, on what."""


@dataclass(frozen=True)
class PolicyConfig(Section, section="policy"):
    """Inputs of the policy besides one image, and steps per prediction."""

    type: str | None = flag("--policy-type", None)
    """Type of the policy, for backend lerobot: act, diffusion, smolvla, pi0, pi05 and others."""
    model: str = "openvla/openvla-7b"
    """Folder or Hub id (owner/name@revision) of the weights to start from."""
    statistics: str | None = None
    """JSON file with the statistics that scale actions and joints, under the key crane_x7;
    default: computed from the demonstrations."""
    state_tokens: bool | None = None
    """Give the model the measured joints, as eight tokens after the instruction; default: as in the
    model's policy.json."""
    chunk_steps: Count | None = None
    """Steps per prediction; default: as in the model's policy.json."""
    action_head: Literal["tokens", "l1"] | None = None
    """How actions are predicted: tokens, one after another, or l1, all in one pass by OpenVLA-OFT's
    regression head, which also reads the measured joints; default: as the model."""
    film: bool = False
    """Modulate the vision towers by the instruction (FiLM, as OpenVLA-OFT+), for policies that
    must look at what they are told; needs action head l1. A start that has it keeps it."""


@dataclass(frozen=True)
class AugmentationConfig(Section, section="augmentation"):
    """How images are varied, so that the policy does not memorise one room."""

    crop: bool = flag("--random-crop", True)
    """Random crops of 90 % of the area; the policy later gets the central 90 %."""
    colour: Amount = flag("--colour-jitter", 1.0)
    """Strength of random brightness, contrast, saturation and hue; 0 for none, 1 as OpenVLA."""


@dataclass(frozen=True)
class OutputConfig(Section, section="output"):
    """Where results go."""

    experiment_name: str | None = None
    """Name of the run; default: crane_x7_<backend>."""
    root: str = flag("--output-root", OUTPUT_ROOT)
    """Folder of runs, if --output-dir is not set; also the variable OUTPUT_ROOT."""
    dir: str | None = flag("--output-dir", None)
    """Folder of the run; default: <output root>/<experiment_name>."""
    save_steps: Count = 500
    """Updates between checkpoints."""
    keep: Count | None = None
    """Number of newest checkpoints to keep; default: all."""


@dataclass(frozen=True)
class SftConfig:
    """One fine-tuning run."""

    backend: Literal["openvla", "openpi", "lerobot"]
    """Trainer: openvla is ours; LeRobot trains π0 (openpi) and other types (lerobot)."""
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)

    def __post_init__(self) -> None:
        check_publishing(self.publish, self.logging)

    @property
    def experiment_name(self) -> str:
        """Name of the run."""
        return self.output.experiment_name or f"crane_x7_{self.backend}"

    @property
    def output_dir(self) -> Path:
        """Folder of the run."""
        output = self.output
        return Path(output.dir or Path(output.root, self.experiment_name)).expanduser()

    @property
    def wandb_project(self) -> str:
        """Project at W&B."""
        return self.logging.wandb_project or f"crane-x7-{self.backend}"
