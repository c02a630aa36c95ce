"""Checkpoints on the Hub: complete ones go up, the most advanced complete one comes down.

On the Hub a checkpoint is the folder `checkpoints/<step>/` as LeRobot's own upload has it, so
LeRobot resumes from there, too. Its files are one commit, the marker `complete.json` is the next:
without the marker a checkpoint is half an upload, and is never used. LeRobot's own upload ends the
training where the Hub cannot be reached; this one runs beside the training, and is retried.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crane_x7_vla_rl.log_text import shown
from crane_x7_vla_rl.training.checkpoints.publish import Hub, UploadError, UploadTarget
from crane_x7_vla_rl.training.errors import ConfigError, ResumeError
from crane_x7_vla_rl.training.lerobot import saved
from crane_x7_vla_rl.training.lerobot.saved import CHECKPOINTS, MARKER, MODEL, Saved

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Destination:
    """Where the checkpoints of a run go."""

    target: UploadTarget
    every_save: bool
    """Otherwise the last one, at the end."""


class HubCheckpoints:
    """A model repository with a folder per checkpoint; private if it is created here.

    `policy` is a second repository, for the finished policy alone: its root is what
    `pretrained_model` holds.
    """

    def __init__(self, repo_id: str, policy: bool = False) -> None:
        from huggingface_hub import HfApi

        self.repo_id, self._policy, self._api = repo_id, policy, HfApi()

    def __str__(self) -> str:
        return f"Hub {self.repo_id}"

    def check(self) -> None:
        """Create the repository; raises ConfigError if the Hub refuses the token."""
        Hub(self.repo_id).check()

    def refuse_other_run(self) -> None:
        """Raise ConfigError if the repository holds a checkpoint: a new run never overwrites one.

        A Hub that does not answer is no reason to wait.
        """
        import httpx2

        try:
            place = newest_on_hub(self._api.list_repo_files(self.repo_id))
        except (httpx2.HTTPError, OSError):
            return
        if place is not None:
            raise ConfigError(
                f"{self}: holds {place} of a run; resume it with --resume auto, or choose another"
                " checkpoint.repo_id (--hub-model-id)"
            )

    def upload(self, folder: Path) -> None:
        """Upload a complete checkpoint; raises UploadError."""
        import httpx2

        try:
            self._upload(folder)
        except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
            raise UploadError(f"{self}: {type(error).__name__}: {shown(error)}") from error

    def _upload(self, folder: Path) -> None:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        root = folder / MODEL if self._policy else folder
        place = "" if self._policy else f"{CHECKPOINTS}/{folder.name}/"
        self._api.create_repo(self.repo_id, private=True, exist_ok=True)
        marker = self._marker(folder)
        files = {
            f"{place}{path.relative_to(root).as_posix()}": path
            for path in sorted(root.rglob("*"))
            if path.is_file() and path.name != MARKER
        }
        adds = [CommitOperationAdd(name, path) for name, path in files.items()]
        there = set(self._api.list_repo_files(self.repo_id))
        drops = [CommitOperationDelete(each) for each in {f"{place}{MARKER}"} & there]
        message = f"{CHECKPOINTS}/{folder.name}"
        self._api.create_commit(self.repo_id, [*drops, *adds], commit_message=f"{message}: files")
        if not self._policy:
            self._api.create_commit(
                self.repo_id,
                [CommitOperationAdd(f"{place}{MARKER}", marker)],
                commit_message=f"{message}: complete",
            )

    @staticmethod
    def _marker(folder: Path) -> bytes:
        """Return the marker; one is made for a checkpoint that LeRobot saved alone."""
        import json

        if (why := saved.problem(folder)) is not None:
            raise ValueError(f"{folder}: {why}")
        if (folder / MARKER).is_file():
            return (folder / MARKER).read_bytes()
        sizes = {
            path.relative_to(folder).as_posix(): path.stat().st_size
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        return f"{json.dumps({'files': sizes}, indent=1)}\n".encode()


@dataclass(frozen=True)
class Both:
    """Two targets, one after the other."""

    targets: tuple[UploadTarget, ...]

    def __str__(self) -> str:
        return " and ".join(map(str, self.targets))

    def upload(self, folder: Path) -> None:
        """See UploadTarget."""
        for target in self.targets:
            target.upload(folder)


def newest_on_hub(files: Iterable[str]) -> str | None:
    """Return `checkpoints/<step>` of the most advanced complete checkpoint among a repository's
    files; one without the marker, or without what a resume needs, is skipped."""
    there = set(files)
    parts = [name.split("/") for name in there]
    steps = {p[1] for p in parts if len(p) > 2 and p[0] == CHECKPOINTS and p[1].isdecimal()}
    for step in sorted(steps, key=int, reverse=True):
        place = f"{CHECKPOINTS}/{step}"
        needed = [*saved.NEEDED, f"{MODEL}/config.json", MARKER]
        missing = [name for name in needed if f"{place}/{name}" not in there]
        if not missing:
            return place
        logger.warning("%s on the Hub is incomplete: %s is missing", place, missing[0])
    return None


def download(repo_id: str, run: Path, above: int = -1) -> Saved | None:
    """Bring the newest complete checkpoint into a run's folder; None if there is none above a step.

    Raises ResumeError if it arrives damaged, ConfigError if the Hub refuses, and OSError or an
    error of HTTP where it does not answer.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        info: Any = HfApi().model_info(repo_id)
    except (RepositoryNotFoundError, GatedRepoError) as error:
        raise ConfigError(
            f"{repo_id}: the Hub has no such model, or HF_TOKEN may not read it: {shown(error)}"
        ) from error
    place = newest_on_hub(each.rfilename for each in info.siblings or ())
    if place is None or int(Path(place).name) <= above:
        return None
    logger.info("fetching %s of %s", place, repo_id)
    snapshot_download(repo_id, revision=info.sha, allow_patterns=f"{place}/*", local_dir=run)
    folder = run / place
    if (why := saved.problem(folder)) is not None:
        raise ResumeError(f"{repo_id}: {place} arrived damaged: {why}; resume again to fetch it")
    return Saved(int(Path(place).name), folder)
