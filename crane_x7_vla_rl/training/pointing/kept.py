"""What a stopped `point` continues from. Stages' states ↔ the folder `<output>.unfinished`.

`about.json` has the configuration; each stage has a file, replaced every few hundred updates. What
an update learns from depends on its number and the seed alone, so a continued run equals one that
was never stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from crane_x7_vla_rl.data import files
from crane_x7_vla_rl.file_errors import why
from crane_x7_vla_rl.training.checkpoints.save import free_gb
from crane_x7_vla_rl.training.errors import OutputError, ResumeError

SUFFIX: Final = ".unfinished"
ABOUT: Final = "about.json"


@dataclass(frozen=True)
class Kept:
    """A run's stages on the disk."""

    folder: Path
    about: Mapping[str, Any]
    """The run's configuration."""

    @classmethod
    def of(cls, output: Path, about: Mapping[str, Any]) -> Kept:
        """Return what belongs to the run that writes `output`.

        Raises ResumeError where another configuration has begun it, DataError.
        """
        kept = cls(output.with_name(output.name + SUFFIX), about)
        if not (kept.folder / ABOUT).exists():
            return kept
        begun = files.read_json(kept.folder / ABOUT)
        others = [
            f"{name} was {begun.get(name)!r}, is now {value!r}"
            for name, value in about.items()
            if begun.get(name) != value
        ]
        if others:
            raise ResumeError(
                f"{kept.folder} holds a run of another configuration: {'; '.join(others)}; continue"
                " that with its own values, remove the folder, or choose another name"
            )
        return kept

    def load(self, stage: str) -> dict[str, Any] | None:
        """Return the state that the stage kept last; None at its start. Raises ResumeError."""
        path = self._path(stage)
        if not path.exists():
            return None
        try:
            found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged bytes make torch raise almost anything
            raise ResumeError(
                f"{path}: cannot be continued: {why(error)}; remove it, and the stage begins again"
            ) from error
        return found

    def save(self, stage: str, state: Mapping[str, Any]) -> None:
        """Replace what the stage kept; raises OutputError."""
        try:
            files.write_json(self.folder / ABOUT, self.about)
            files.write_whole(self._path(stage), lambda partial: torch.save(dict(state), partial))
        except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError in torch
            raise OutputError(
                f"{self.folder}: cannot be saved: {why(error)} ({free_gb(self.folder.parent)}); the"
                " same command continues at what was saved last"
            ) from error

    def remove(self) -> None:
        """Remove the folder, after the checkpoint is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, stage: str) -> Path:
        return self.folder / f"{stage}.pt"
