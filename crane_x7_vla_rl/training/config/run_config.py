"""What the configurations of both trainers have in common, for code that serves both."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from crane_x7_vla_rl.training.config.sections import (
    ComputeConfig,
    LoggingConfig,
    LoraConfig,
    PublishConfig,
)


class Keeps(Protocol):
    """How many checkpoints stay."""

    @property
    def keep(self) -> int | None:
        """The newest ones; None for all."""


class RunConfig(Protocol):
    """A whole configuration, of fine-tuning or of reinforcement learning."""

    @property
    def experiment_name(self) -> str:
        """Name of the run."""

    @property
    def output_dir(self) -> Path:
        """Folder of the run."""

    @property
    def wandb_project(self) -> str:
        """Project at W&B."""

    @property
    def training(self) -> ComputeConfig:
        """The device, and how it computes."""

    @property
    def lora(self) -> LoraConfig:
        """Which weights learn."""

    @property
    def output(self) -> Keeps:
        """Where results go."""

    @property
    def logging(self) -> LoggingConfig:
        """Where progress is shown."""

    @property
    def publish(self) -> PublishConfig:
        """Where checkpoints are uploaded to."""
