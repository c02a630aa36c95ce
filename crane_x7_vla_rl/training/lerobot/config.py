"""What a LeRobot training is beside LeRobot's own options: launch, uploads. YAML → dataclasses.

These sections of `train.remote.yaml` are ours; `dataset`, `policy`, `training` and `wandb` become
options of LeRobot, see train_file.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from crane_x7_vla_rl.fields import Count, Positive
from crane_x7_vla_rl.training.config.sections import Section

Precision = Literal["no", "fp16", "bf16"]


@dataclass(frozen=True)
class JobSection(Section, section="job"):
    """Name and place of the run."""

    name: str | None = None
    """Name of the run; default: as LeRobot has it, the policy's type."""
    output_dir: str | None = None
    """Folder of the run; default: <output root>/train/<name>."""


@dataclass(frozen=True)
class CheckpointSection(Section, section="checkpoint"):
    """Where checkpoints are uploaded to."""

    repo_id: str | None = None
    """owner/name of a model repository on the Hub; created (private) if new."""
    upload_every_save: bool = False
    """Upload each saved checkpoint; otherwise the last one, when the training has ended."""
    upload_poll_seconds: Positive = 60.0
    """Longest time between a save and the start of its upload. LeRobot is watched more often."""


@dataclass(frozen=True)
class AccelerateSection(Section, section="accelerate"):
    """Several processes, by `accelerate launch`."""

    use: bool | None = None
    """Start by `accelerate launch`; default: with two GPUs or more."""
    num_processes: Count | None = None
    """Processes, of all machines together; default: one per GPU."""
    num_machines: Count | None = None
    """Machines; rank and address of the first one are in config_file."""
    mixed_precision: Precision | None = None
    """Data type of matrix products; also sets policy.dtype where the policy has it."""
    config_file: str | None = None
    """A file that `accelerate config` wrote; flags above override it."""


@dataclass(frozen=True)
class TorchSection(Section, section="torch"):
    """PyTorch."""

    nightly: bool = False
    """A nightly PyTorch. Not needed: the pinned release runs on a B200, and LeRobot refuses newer
    ones. true is a warning."""


@dataclass(frozen=True)
class OwnSections:
    """The sections that are not LeRobot's."""

    job: JobSection = field(default_factory=JobSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    accelerate: AccelerateSection = field(default_factory=AccelerateSection)
    torch: TorchSection = field(default_factory=TorchSection)
