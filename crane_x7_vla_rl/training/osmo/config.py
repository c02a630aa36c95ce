"""The configuration of a training on bags. `config.yaml` and `--override` → a checked `OsmoConfig`.

The keys are those of the published package for OSMO; what has no key there has one here only where
a bag or a machine differs. `--override` converts as published: true and false, whole numbers,
decimals and 5e-5; everything else is text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from crane_x7_vla_rl.fields import Count, FinitePositive, Index, above, at_least, leaves
from crane_x7_vla_rl.training.config import loader
from crane_x7_vla_rl.training.config.loader import Layer
from crane_x7_vla_rl.training.config.sections import Section
from crane_x7_vla_rl.training.errors import ConfigError

Rate = Annotated[float, above(0)]
Weight = Annotated[float, at_least(0)]
OVERRIDE: Final = "--override"


@dataclass(frozen=True)
class DataSection(Section, section="data"):
    """The recordings, and what becomes of them."""

    path: str = "/data/rosbags"
    """Folder of bags, searched recursively: folders with metadata.yaml, .db3 or .mcap files."""
    fps: FinitePositive = 30.0
    """Frames per second of the episodes, at most the camera's."""
    camera_topic: str | None = None
    """CompressedImage or Image; default: the only topic of images."""
    joint_states_topic: str = "/joint_states"
    """JointState."""
    joints: tuple[str, ...] = ()
    """Names of the joints, in the order of the columns; default: those of the first bag."""
    max_gap_s: FinitePositive = 0.1
    """Largest distance in time from a frame to its image and joint state."""
    image_size: tuple[int, int] | None = None
    """Width and height of the images in training; default: as recorded."""
    action: Literal["position", "delta"] = "position"
    """The action of a frame: the joints one frame later, or how far they move until then."""
    task: str = "demonstration"
    """Instruction of every episode. LeRobot needs one; ACT does not read it."""


@dataclass(frozen=True)
class ModelSection(Section, section="model"):
    """LeRobot's ACT."""

    chunk_size: Count = 100
    """Steps of a prediction."""
    kl_weight: Weight = 10.0
    """Weight of the KL divergence in the loss."""
    dim_model: Count = 512
    """Width of the transformer."""
    n_heads: Count = 8
    """Attention heads; they divide dim_model."""
    dim_feedforward: Count = 3200
    """Width of its feed-forward layers."""
    pretrained_backbone: bool = True
    """Start the ResNet-18 from ImageNet's weights, which are downloaded."""


@dataclass(frozen=True)
class TrainingSection(Section, section="training"):
    """The optimizer's steps."""

    steps: Count = 5000
    """Total training steps."""
    batch_size: Count = 4
    """Samples per step and GPU."""
    lr: Rate = 1e-5
    """Learning rate, of the image backbone, too."""
    scheduler: Literal["none", "cosine"] = "none"
    """none: a constant rate; cosine: linear warm-up, then half a cosine to min_lr."""
    warmup_steps: Index = 500
    """Steps of the warm-up, with scheduler cosine."""
    min_lr: Weight = 1e-7
    """Learning rate at the end, with scheduler cosine."""
    num_workers: Index = 2
    """Processes that load data, per GPU."""
    save_freq: Count = 1000
    """Steps between checkpoints; the last step is saved in any case."""
    log_freq: Count = 50
    """Steps between lines of progress."""
    seed: Index = 1000
    """Seed of all random numbers."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: CUDA if available, otherwise the CPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scheduler != "cosine":
            return
        if self.warmup_steps >= self.steps:
            raise ConfigError(
                f"training.warmup_steps is {self.warmup_steps}, expected less than training.steps"
                f" ({self.steps}); lower it"
            )
        if self.min_lr > self.lr:
            raise ConfigError(
                f"training.min_lr is {self.min_lr:g}, expected at most training.lr ({self.lr:g})"
            )


@dataclass(frozen=True)
class OutputSection(Section, section="output"):
    """Where everything is written."""

    dir: str = "/output/train-rosbag-act"
    """Folder of the result, checkpoint_<step>/pretrained_model. What a later start needs to resume
    is in <dir>-run, the data set in <dir>-data."""


@dataclass(frozen=True)
class WandbSection(Section, section="wandb"):
    """Weights & Biases."""

    enabled: bool = False
    """Report to W&B; WANDB_API_KEY is its key."""
    project: str = "ur10e-act-train"
    """Project."""
    entity: str | None = None
    """User or team."""
    run_name: str | None = None
    """Name of the run; default: ACT and the learning rate."""
    tags: tuple[str, ...] = ("osmo",)
    """Tags of the run."""
    mode: Literal["online", "offline"] | None = None
    """offline keeps the run on this machine; default: WANDB_MODE, else online."""


@dataclass(frozen=True)
class OsmoConfig:
    """Everything that a training is told."""

    data: DataSection = field(default_factory=DataSection)
    model: ModelSection = field(default_factory=ModelSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    output: OutputSection = field(default_factory=OutputSection)
    wandb: WandbSection = field(default_factory=WandbSection)

    def __post_init__(self) -> None:
        if self.model.dim_model % self.model.n_heads:
            raise ConfigError(
                f"model.dim_model is {self.model.dim_model}, expected a multiple of model.n_heads"
                f" ({self.model.n_heads})"
            )

    @property
    def result(self) -> Path:
        """Folder of the result."""
        return Path(self.output.dir).expanduser()

    @property
    def run(self) -> Path:
        """LeRobot's folder: complete checkpoints, train.log, metrics.jsonl.

        It is one level down: LeRobot makes it late, and OSMO uploads what is above from the start.
        """
        return self.result.with_name(f"{self.result.name}-run") / "lerobot"

    @property
    def dataset(self) -> Path:
        """Folder of the converted bags."""
        return self.result.with_name(f"{self.result.name}-data")


def read(file: Path | None, overrides: Sequence[str] = ()) -> OsmoConfig:
    """Return the configuration; raises ConfigError with every unknown key and wrong value."""
    layers = [] if file is None else [loader.read_file(file)]
    return loader.build(OsmoConfig, [*layers, given(overrides)])


def given(overrides: Sequence[str]) -> Layer:
    """Return the values of `--override KEY=VALUE`; the last of two for a key counts.

    Raises ConfigError.
    """
    texts = {leaf.key for leaf in leaves(OsmoConfig) if leaf.kind.base is str}
    lists = {leaf.key for leaf in leaves(OsmoConfig) if leaf.kind.base == tuple[str, ...]}
    found: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not key:
            raise ConfigError(f"{OVERRIDE} {text}: expected KEY=VALUE, as in training.lr=5e-5")
        if key in lists:
            value = value.strip("[]")
            found[key] = [part.strip(" \"'") for part in value.split(",") if part.strip()]
        elif key in texts and value not in ("null", "none", ""):
            found[key] = value
        else:
            found[key] = converted(value)
    return Layer(OVERRIDE, found)


def converted(text: str) -> Any:
    """Return true and false, whole numbers, decimals and null as such, everything else as text."""
    words: Mapping[str, Any] = {"true": True, "false": False, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
