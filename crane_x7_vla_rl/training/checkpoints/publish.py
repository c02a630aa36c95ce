"""Uploads of checkpoints in the background; they never block the training.

Complete checkpoints → the Hub or W&B, one after another in a thread, which retries while the target
is unreachable. Failed uploads are listed at the end. On the Hub a
checkpoint is the repository's content, its files in one commit and its marker in the next, then a
tag of its name: `owner/name` is the newest, `owner/name@checkpoint-500` stays what it was.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from crane_x7_vla_rl import secret_text
from crane_x7_vla_rl.log_text import shown
from crane_x7_vla_rl.training.checkpoints import lineage
from crane_x7_vla_rl.training.checkpoints.save import CONFIG, MARKER
from crane_x7_vla_rl.training.config.run_config import RunConfig
from crane_x7_vla_rl.training.errors import ConfigError
from crane_x7_vla_rl.training.tracking import WandbRun

logger = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 5.0
LONGEST_PAUSE_S: Final = 300.0
LAST_TRIES: Final = 3
LAST_PAUSE_S: Final = 1.0
"""Number of retries after training has ended."""
WAITING: Final = 2
"""Most checkpoints that wait for an unreachable target; older ones are discarded, so that the disk
does not fill."""
WANDB_S: Final = 1800.0
REFUSED: Final = (401, 403)


class UploadError(Exception):
    """An upload failed; names target and reason."""


class UploadTarget(Protocol):
    """Where checkpoints are uploaded to."""

    def __str__(self) -> str: ...

    def upload(self, folder: Path) -> None:
        """Upload a complete checkpoint; raises UploadError."""
        ...


class Hub:
    """A model repository on the Hub; private if it is created here."""

    def __init__(self, repo_id: str) -> None:
        from huggingface_hub import HfApi, get_token

        secret_text.remember(get_token())
        self._name, self._api = repo_id, HfApi()

    def __str__(self) -> str:
        return f"Hub {self._name}"

    def check(self) -> None:
        """Create the repository, before hours of training; raises ConfigError if the Hub refuses.

        A Hub that does not answer does not stop the run: uploads are retried later.
        """
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError

        try:
            self._api.create_repo(self._name, private=True, exist_ok=True)
        except HfHubHTTPError as error:
            if error.response.status_code in REFUSED:
                raise ConfigError(
                    f"publish.hub_model_id is {self._name}: the Hub answered"
                    f" {error.response.status_code}; set HF_TOKEN to a token with write access"
                ) from error
            logger.warning("%s: not ready (%s); uploads will be retried", self, shown(error))
        except (httpx2.HTTPError, OSError) as error:
            logger.warning("%s: does not answer (%s); uploads will be retried", self, shown(error))

    def upload(self, folder: Path) -> None:
        """See UploadTarget."""
        import httpx2

        try:
            self._upload(folder)
        except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
            # Errors of HTTP, of the connection, of large files, of what the Hub answered.
            raise UploadError(f"{self}: {type(error).__name__}: {shown(error)}") from error

    def _upload(self, folder: Path) -> None:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        self._api.create_repo(self._name, private=True, exist_ok=True)
        files = {
            path.relative_to(folder).as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        there = set(self._api.list_repo_files(self._name))
        stale = {name for name in there - files.keys() if not name.startswith(".git")}
        adds = [CommitOperationAdd(n, p) for n, p in files.items() if n != MARKER]
        drops = [CommitOperationDelete(name) for name in sorted(stale | ({MARKER} & there))]
        self._api.create_commit(self._name, [*adds, *drops], commit_message=f"{folder.name}: files")
        whole = self._api.create_commit(
            self._name,
            [CommitOperationAdd(MARKER, files[MARKER])],
            commit_message=f"{folder.name}: complete",
        )
        self._tag(folder.name, whole.oid)

    def _tag(self, tag: str, commit: str) -> None:
        from huggingface_hub.errors import HfHubHTTPError

        try:
            self._api.create_tag(self._name, tag=tag, revision=commit)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            self._api.delete_tag(self._name, tag=tag)
            self._api.create_tag(self._name, tag=tag, revision=commit)


@dataclass(frozen=True)
class Artifacts:
    """Model artifacts of a W&B run, each with its lineage and configuration as metadata."""

    run: Any
    """What wandb.init returned."""
    name: str
    """Name of the artifact; each upload is a version of it."""
    offline: bool
    used: set[str] = field(default_factory=set)
    """The artifacts that the run has said it uses."""

    def __str__(self) -> str:
        return f"W&B artifact {self.name}"

    def called(self, folder: str) -> str:
        """Return entity/project/name:alias of the checkpoint in a folder of this name."""
        whole = [self.run.entity, self.run.project, f"{self.name}:{self._alias(folder)}"]
        return "/".join(part for part in whole if part)

    def _alias(self, folder: str) -> str:
        """Return what no other run calls a version: `folder` alone may move to a newer run's."""
        return f"{self.run.id}.{folder}"

    def upload(self, folder: Path) -> None:
        """See UploadTarget. Offline it is copied next to the run, for `wandb sync`."""
        import wandb

        origin = lineage.read(folder)
        self._use(origin.get("made_from"))
        # W&B takes 100 keys at most, so the configuration is one text.
        config = (folder / CONFIG).read_text()
        about = {"folder": folder.name, **origin, "config": config}
        try:
            artifact = wandb.Artifact(self.name, type="model", metadata=about)
            # Not copied before it is sent: this folder stays until then.
            artifact.add_dir(str(folder), policy="mutable" if self.offline else "immutable")
            aliases = ["latest", folder.name, self._alias(folder.name)]
            logged = self.run.log_artifact(artifact, aliases=aliases)
            if not self.offline:
                logged.wait(timeout=int(WANDB_S))
        except (wandb.errors.Error, OSError, ValueError, RuntimeError) as error:
            raise UploadError(f"{self}: {type(error).__name__}: {shown(error)}") from error

    def _use(self, source: str | None) -> None:
        """Link the start model in W&B's lineage graph; offline, the metadata names it."""
        import wandb

        if source is None or source in self.used or self.offline:
            return
        self.used.add(source)
        try:
            self.run.use_artifact(source)
        except (wandb.errors.Error, OSError, ValueError, RuntimeError) as error:
            logger.warning("%s: no lineage link from %s at W&B: %s", self, source, shown(error))


def artifact_in(targets: Sequence[UploadTarget], folder: str) -> str | None:
    """Return the name at W&B of a checkpoint in a folder of this name, if it is uploaded."""
    return next(
        (target.called(folder) for target in targets if isinstance(target, Artifacts)), None
    )


@dataclass(frozen=True)
class UploadTargets:
    """Where a run's checkpoints go."""

    every_save: tuple[UploadTarget, ...] = ()
    at_end: tuple[UploadTarget, ...] = ()

    def at(self, end: bool) -> tuple[UploadTarget, ...]:
        """Return where a checkpoint goes: the last one, or one on the way."""
        return self.at_end if end else self.every_save


def upload_targets(config: RunConfig, wandb_run: WandbRun | None) -> UploadTargets:
    """Return where checkpoints go; raises ConfigError where the Hub refuses."""
    wanted: list[tuple[UploadTarget, str]] = []
    if config.publish.push_to_hub != "no":
        if config.publish.hub_model_id is None:
            raise ConfigError("publish.hub_model_id is not set; --push-to-hub needs --hub-model-id")
        hub = Hub(config.publish.hub_model_id)
        hub.check()
        wanted.append((hub, config.publish.push_to_hub))
    if config.publish.wandb_artifacts != "no":
        assert wandb_run is not None  # the configuration has been checked
        artifacts = Artifacts(wandb_run.run, config.experiment_name, wandb_run.offline)
        wanted.append((artifacts, config.publish.wandb_artifacts))
    every = tuple(target for target, moment in wanted if moment == "every-save")
    return UploadTargets(every, tuple(target for target, _ in wanted))


class UploadWorker:
    """The thread that uploads checkpoints to one target, in their order."""

    def __init__(
        self, target: UploadTarget, clock: Callable[[], float], first_pause_s: float = FIRST_PAUSE_S
    ) -> None:
        self.target = target
        self._clock, self._first_pause_s = clock, first_pause_s
        self._waiting: list[Path] = []
        self._failed: dict[Path, str] = {}
        """Why the last attempt failed."""
        self._last_tries: Counter[Path] = Counter()
        self._given_up: list[Path] = []
        self._finishing = False
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name=f"to {target}", daemon=True).start()

    def offer(self, folder: Path) -> None:
        """Upload this checkpoint as soon as possible."""
        with self._changed:
            if len(self._waiting) > WAITING:
                self._given_up.append(self._waiting.pop(1))  # the first may be on its way
            self._waiting.append(folder)
            self._changed.notify_all()

    def pending(self) -> list[Path]:
        """Return the checkpoints that must stay on the disk for now."""
        with self._changed:
            return list(self._waiting)

    def begin_last_tries(self) -> None:
        """From now on, retry each checkpoint at most LAST_TRIES times."""
        with self._changed:
            self._finishing = True
            self._changed.notify_all()

    def finish(self, end_s: float) -> list[str]:
        """Wait for the last attempts until `end_s`; return failed uploads, with reasons."""
        with self._changed:
            while self._open() and (left_s := end_s - self._clock()) > 0:
                self._changed.wait(left_s)
            undone = [f"{folder} → {self.target}: discarded for newer" for folder in self._given_up]
            return undone + [
                f"{folder} → {self.target}: {self._failed.get(folder, 'timeout')}"
                for folder in self._waiting
            ]

    def _open(self) -> list[Path]:
        """Return the checkpoints to upload."""
        if not self._finishing:
            return self._waiting
        return [folder for folder in self._waiting if self._last_tries[folder] < LAST_TRIES]

    def _work(self) -> None:
        pause_s = self._first_pause_s
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._open()))
                folder = self._open()[0]
            try:
                self.target.upload(folder)
            except UploadError as error:
                logger.warning("%s: upload failed, will be retried: %s", folder, error)
                self._note(folder, str(error), pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                continue
            logger.info("%s is at %s", folder, self.target)
            pause_s = self._first_pause_s
            with self._changed:
                self._waiting.remove(folder)
                self._changed.notify_all()

    def _note(self, folder: Path, why: str, pause_s: float) -> None:
        """Remember a failed attempt, and pause; briefly when training has ended."""
        with self._changed:
            self._failed[folder] = why
            if self._finishing:
                self._last_tries[folder] += 1
                self._changed.notify_all()
                self._changed.wait(LAST_PAUSE_S if self._open() else 0)
            else:
                self._changed.wait_for(lambda: self._finishing, pause_s)


class Uploads:
    """All targets that a run uploads to; none of them waits for another."""

    def __init__(
        self, targets: Sequence[UploadTarget], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._workers = [UploadWorker(target, clock) for target in targets]

    def offer(self, folder: Path, targets: Sequence[UploadTarget]) -> None:
        """Upload a complete checkpoint to these targets."""
        for worker in self._workers:
            if worker.target in targets:
                worker.offer(folder)

    def pending(self) -> set[Path]:
        """Return the checkpoints that must stay on the disk for now."""
        return {folder for worker in self._workers for folder in worker.pending()}

    def finish(self, deadline_s: float) -> list[str]:
        """Retry the rest a few times; return failed uploads, with reasons."""
        end_s = self._clock() + deadline_s
        for worker in self._workers:
            worker.begin_last_tries()
        return [line for worker in self._workers for line in worker.finish(end_s)]
