"""Where a training by LeRobot resumes. What the user names → the most advanced complete checkpoint.

Candidates are runs on this machine and repositories on the Hub. LeRobot takes the configuration
from the checkpoint; only options that the user has changed are passed again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl.fields import quoted
from crane_x7_vla_rl.log_text import shown
from crane_x7_vla_rl.policies.hub import REPO_ID
from crane_x7_vla_rl.training.errors import ConfigError, ResumeError
from crane_x7_vla_rl.training.lerobot import options as lerobot
from crane_x7_vla_rl.training.lerobot import saved, upload
from crane_x7_vla_rl.training.lerobot.saved import Saved

logger = logging.getLogger(__name__)

AUTO, HUB, LOCAL = "auto", "hub", "local"
WORDS: Final = (AUTO, HUB, LOCAL)
FROM_CHECKPOINT: Final = (
    lerobot.TYPE, lerobot.PATH, lerobot.CONFIG_PATH, "policy.pretrained_path",
    "policy.pretrained_revision",
    "dataset.repo_id", "dataset.root", "output_dir", "policy.push_to_hub", "policy.repo_id",
    "save_checkpoint_to_hub",
)  # fmt: skip
"""Options that decide what is in a checkpoint, or that this machine sets."""


@dataclass(frozen=True)
class Places:
    """Where checkpoints of this training may be."""

    run: Path
    """Its folder."""
    repo_id: str | None = None
    """Its repository on the Hub."""
    root: Path = Path("outputs")
    """The folder below which all runs are."""


@dataclass(frozen=True)
class Found:
    """A checkpoint to resume from."""

    saved: Saved
    from_hub: bool = False

    @property
    def run(self) -> Path:
        """The folder of its run."""
        return self.saved.folder.parents[1]


def find(wanted: Sequence[str], places: Places) -> Found | None:
    """Return the most advanced complete checkpoint of all that are named; None: start.

    `wanted`: auto (this run here and on the Hub, else start), hub, local (any run below the output
    root), folders, or repositories owner/name. Raises ResumeError if none has a complete one, and
    ConfigError where the Hub refuses.
    """
    if not wanted:
        return None
    local = [each for each in (_here(word, places) for word in wanted) if each is not None]
    best = max(local, default=None)
    above = -1 if best is None else best.step
    for word in wanted:
        if (repo := _repository(word, places)) is not None:
            found = _there(repo, places.run, above, must=len(wanted) == 1 and word != AUTO)
            if found is not None:
                return Found(found, from_hub=True)
    if best is not None:
        return Found(best)
    if AUTO in wanted:
        return None
    raise ResumeError(
        f"--resume {' '.join(wanted)}: there is no complete checkpoint of LeRobot; without --resume"
        " a new training starts"
    )


def _here(word: str, places: Places) -> Saved | None:
    if word == AUTO:
        return saved.newest(places.run)
    if word == LOCAL:
        runs = {path.parent for path in places.root.rglob(saved.CHECKPOINTS) if path.is_dir()}
        found = [each for run in {*runs, places.run} if (each := saved.newest(run)) is not None]
        return max(found, default=None)
    if word == HUB or (REPO_ID.fullmatch(word) and not Path(word).expanduser().exists()):
        return None
    if not Path(word).expanduser().exists() and not Path(word).is_symlink():
        raise ResumeError(f"--resume {word}: this folder does not exist")
    return saved.find(Path(word))


def _repository(word: str, places: Places) -> str | None:
    if word == HUB and places.repo_id is None:
        raise ConfigError(
            "--resume hub: checkpoint.repo_id (--checkpoint-repo-id) names no repository"
        )
    if word in (HUB, AUTO):
        return places.repo_id
    if word == LOCAL or Path(word).expanduser().exists() or Path(word).is_symlink():
        return None
    return word if REPO_ID.fullmatch(word) else None


def _there(repo: str, run: Path, above: int, must: bool) -> Saved | None:
    import httpx2

    try:
        return upload.download(repo, run, above)
    except ConfigError:
        if must:
            raise
        return None  # the repository is made at the first upload
    except (httpx2.HTTPError, OSError) as error:
        if must:
            raise ResumeError(
                f"{repo}: the Hub does not answer ({shown(error)}); try again, or resume from a"
                " folder"
            ) from error
        logger.warning("%s: the Hub does not answer (%s); only folders count", repo, shown(error))
        return None


def config_of(path: str) -> dict[str, Any]:
    """Return the train_config.json that LeRobot's word `--config_path` names.

    Raises ConfigError if there is none.
    """
    place = Path(path).expanduser()
    if not place.exists() and REPO_ID.fullmatch(path):
        import httpx2
        from huggingface_hub import hf_hub_download

        try:
            place = Path(hf_hub_download(path, Path(saved.CONFIG).name))
        except (httpx2.HTTPError, OSError) as error:
            raise ConfigError(f"--config_path {path}: {shown(error)}") from error
    file = place / Path(saved.CONFIG).name if place.is_dir() else place
    config = saved.read(file)
    if not config:
        raise ConfigError(
            f"--config_path {path}: holds no train_config.json of LeRobot; give the folder"
            " pretrained_model of a checkpoint"
        )
    return config


def filled(wanted: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with the policy's type and the data set of a configuration."""
    names = (lerobot.TYPE, "dataset.repo_id", "dataset.root", "dataset.revision")
    known = {key: value for key in names if (value := _value(config, key)) is not None}
    if wanted.get("dataset.repo_id") or wanted.get("dataset.root"):
        known = {lerobot.TYPE: known[lerobot.TYPE]} if lerobot.TYPE in known else {}
    found = {**known, **wanted}
    found.pop(lerobot.PATH, None)
    return found


def check(found: Found, wanted: Mapping[str, Any]) -> None:
    """Raise ResumeError for another type of policy, and for W&B that was off until now."""
    config = saved.read(found.saved.folder / saved.CONFIG)
    kind, was = wanted.get(lerobot.TYPE), _value(config, lerobot.TYPE)
    if kind is not None and kind != was:
        raise ResumeError(
            f"{found.saved.folder} holds a policy of type {was}, and policy.type is {kind}; start a"
            " new run in another job.output_dir"
        )
    if wanted.get("wandb.enable") and not _value(config, "wandb.run_id"):
        raise ResumeError(
            f"{found.saved.folder} was trained without W&B, which LeRobot cannot turn on when it"
            " resumes; remove wandb.enable (--use-wandb), or start a new run"
        )


def changed(config: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that differ from a configuration, and log them."""
    found = {
        key: value
        for key, value in wanted.items()
        if key not in FROM_CHECKPOINT and not _same(_value(config, key), value)
    }
    for key, value in found.items():
        logger.info("%s: %s → %s", key, quoted(_value(config, key)), quoted(value))
    return found


def _value(config: Mapping[str, Any], key: str) -> Any:
    """Return the value at a dotted key of a nested configuration."""
    found: Any = config
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, float) and isinstance(new, int | float) and not isinstance(new, bool):
        return math.isclose(old, new, rel_tol=1e-12)
    if isinstance(new, Mapping) and isinstance(old, Mapping):
        return dict(new).items() <= dict(old).items()
    return bool(old == new)
