"""The trainer's own part of a checkpoint: progress, optimizer, random states ↔ `training_state/`.

With it, a resumed run equals one that was never stopped.

`training_state/` has `trainer.json` (counters, data position, tracker run) and `tensors.pt`
(optimizer by names of parameters, random states of every process); the latter is read as tensors,
never as code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from crane_x7_vla_rl.file_errors import why
from crane_x7_vla_rl.training.checkpoints.policy_files import write_json
from crane_x7_vla_rl.training.checkpoints.save import STATE
from crane_x7_vla_rl.training.errors import ResumeError

TRAINER: Final = "trainer.json"
TENSORS: Final = "tensors.pt"


@dataclass(frozen=True)
class Progress:
    """The progress of a run."""

    step: int = 0
    """Updates done."""
    samples: int = 0
    """Samples that all processes together have seen."""
    processes: int = 1
    position: Mapping[str, Any] | None = None
    """Position in the data; None at the beginning."""
    wandb_run: str | None = None
    """Id of the run at W&B."""


def random_state() -> dict[str, Tensor]:
    """Return the random states of this process, which dropout samples from."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_state(states: Mapping[str, Tensor]) -> None:
    """Set what `random_state` returned."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def write(
    folder: Path,
    progress: Progress,
    optimizer: Mapping[str, Any],
    randoms: Sequence[Mapping[str, Tensor]],
) -> None:
    """Write `training_state/` into a checkpoint's folder; `randoms` holds each process's."""
    inside = folder / STATE
    inside.mkdir()
    write_json(inside / TRAINER, asdict(progress))
    torch.save({"optimizer": dict(optimizer), "random": list(randoms)}, inside / TENSORS)


def read_progress(folder: Path) -> Progress:
    """Return the checkpoint's progress; raises ResumeError if it cannot be read."""
    path = folder / STATE / TRAINER
    try:
        return Progress(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ResumeError(f"{path}: cannot be resumed: {why(error)}") from error


def read_tensors(folder: Path) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
    """Return the optimizer's state and the random states; raises ResumeError."""
    path = folder / STATE / TENSORS
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        return found["optimizer"], found["random"]
    except Exception as error:  # damaged bytes make torch raise almost anything
        raise ResumeError(f"{path}: cannot be resumed: {why(error)}") from error
