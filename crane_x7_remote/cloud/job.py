"""What a run trains. Flags, `.env` and YAML → a `Job`, checked before anything is rented.

The trainer checks its own configuration: `crane-x7-vla-rl … --dry-run` runs here as a child, so
that a wrong key costs nothing. This file only reads what the rental needs to know: where outputs
will be, and where checkpoints go.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from crane_x7_remote import settings
from crane_x7_remote.errors import SettingsError
from crane_x7_vla_rl.log_text import tell
from crane_x7_vla_rl.variables import bare, means_unset
from crane_x7_vla_rl.yaml_file import YamlError, parse_yaml

TRAINER: Final = "crane_x7_vla_rl.training.cli"
LEROBOT: Final = "lerobot"
KINDS: Final = (LEROBOT, "sft", "train")
CONFIG: Final = "train.remote.yaml"
CONFIG_VARIABLE: Final = "LEROBOT_TRAIN_CONFIG"
REPO_VARIABLE: Final = "LEROBOT_CHECKPOINT_REPO_ID"
OWN_CONFIG: Final = "train.config.yaml"
"""Name of the file of sft's or train's --config on the machine."""
OUTPUTS: Final = "outputs"
CHECK_S: Final = 180.0
MODES: Final = ("train", "resume_hub", "resume_local", "auto")


@dataclass(frozen=True)
class Job:
    """One training."""

    kind: str = LEROBOT
    """lerobot, or sft and train, our own trainers."""
    words: tuple[str, ...] = ()
    """The command of sft or train."""
    config: bytes = field(default=b"", repr=False)
    """The YAML file."""
    outputs: str = OUTPUTS
    """Folder of the run, below the machine's working folder unless absolute."""
    repo_id: str | None = None
    """Where checkpoints resume the Hub."""
    every_save: bool = False
    """Whether each checkpoint goes there, not the last one alone."""
    dataset: str | None = None
    """The data set's id on the Hub."""

    @property
    def survives_eviction(self) -> bool:
        """Whether another machine can resume from the Hub; our own trainers need a disk."""
        return self.kind == LEROBOT and self.repo_id is not None and self.every_save

    def files(self) -> dict[str, bytes]:
        """Return what the machine needs besides the scripts."""
        import json

        found = {"job_kind": f"{self.kind}\n".encode()}
        if self.kind != LEROBOT:
            own = {OWN_CONFIG: self.config} if self.config else {}
            return found | own | {"job.json": json.dumps(self.words).encode()}
        found[CONFIG] = self.config
        if self.repo_id is not None:
            found["checkpoint_repo"] = self.repo_id.encode()
        return found

    def mode(self, wanted: str) -> str:
        """Return the word for setup_env.sh."""
        return wanted if self.kind == LEROBOT else "job"


def read_lerobot(file: Path | None, repo_id: str | None, values: Mapping[str, str]) -> Job:
    """Return the job of a YAML file; flags override variables, and these the file.

    Raises SettingsError with the trainer's own words if a key or a value is wrong.
    """
    path = file or Path(_variable(values, CONFIG_VARIABLE) or f"configs/{CONFIG}")
    try:
        content = path.read_bytes()
        parsed = parse_yaml(content.decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"--train-config {path}: cannot be read ({error.__class__.__name__}); copy"
            " configs/train.remote.example.yaml to it"
        ) from error
    except YamlError as error:
        raise SettingsError(f"{path} {error}") from error
    keys = _flat(parsed if isinstance(parsed, dict) else {})
    if keys.get("dataset.root"):
        raise SettingsError(
            f"{path}: dataset.root is {keys['dataset.root']!r}, a folder that the rented machine"
            " does not have; put the data set on the Hub, and keep dataset.repo_id alone"
        )
    named = keys.get("job.output_dir")
    outputs = None if named is None else _place(path, str(named))
    repo = repo_id or _variable(values, REPO_VARIABLE) or keys.get("checkpoint.repo_id")
    printed = _check(path, None if repo is None else str(repo), values)
    name = keys.get("job.name") or _printed(printed, "policy.type") or LEROBOT
    return Job(
        config=content,
        outputs=outputs or _place(path, f"{OUTPUTS}/train/{name}"),
        repo_id=None if repo is None else str(repo),
        every_save=bool(keys.get("checkpoint.upload_every_save")),
        dataset=_printed(printed, "dataset.repo_id"),
    )


def read_own(kind: str, words: Sequence[str], values: Mapping[str, str]) -> Job:
    """Return a job of our own trainers, `sft` or `train`. Raises SettingsError."""
    _dry_run([kind, *words, "--dry-run"], values, f"--job {kind}")
    full = [kind, *words]
    config = b""
    if (file := _after(words, "--config")) is not None:
        config = Path(file).read_bytes()  # the trainer has just read it
        given = (file, f"--config={file}")
        full = [word.replace(file, OWN_CONFIG) if word in given else word for word in full]
    if not any(word.startswith("--resume") for word in words):
        full += ["--resume", "auto"]
    repo = _after(words, "--hub-model-id")
    return Job(kind, tuple(full), config, every_save="every-save" in words, repo_id=repo)


def _after(words: Sequence[str], flag: str) -> str | None:
    """Return the value of a flag."""
    for at, word in enumerate(words):
        name, _, value = word.partition("=")
        if name == flag:
            return value or next(iter(words[at + 1 : at + 2]), None)
    return None


def _check(path: Path, repo_id: str | None, values: Mapping[str, str]) -> str:
    """Let the trainer read the file, and return the words that it would tell LeRobot."""
    with tempfile.TemporaryDirectory() as folder:
        words = [LEROBOT, "--config", str(path.absolute()), "--dry-run"]
        if repo_id is not None:
            words += ["--checkpoint-repo-id", repo_id]
        # A run of the same name here must not matter for the machine there.
        words += ["--override", f"job.output_dir={folder}/run"]
        return _dry_run(words, values, str(path))


def _dry_run(words: Sequence[str], values: Mapping[str, str], what: str) -> str:
    environ = settings.inherited() | dict(values)
    environ.pop(CONFIG_VARIABLE, None)
    done = subprocess.run(
        [sys.executable, "-m", TRAINER, *words], capture_output=True, text=True, check=False,
        timeout=CHECK_S, env=environ, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode != 0:
        lines = [line for line in done.stderr.strip().splitlines() if " WARNING " not in line]
        raise SettingsError(f"{what} is refused, nothing was rented:\n{tell(chr(10).join(lines))}")
    return done.stdout


def _printed(printed: str, name: str) -> str | None:
    for line in printed.splitlines():
        text = line.strip().removesuffix("\\").strip().strip("'")
        if text.startswith(f"--{name}="):
            return text.partition("=")[2]
    return None


def _place(path: Path, outputs: str) -> str:
    plain = outputs.replace("/", "").replace("-", "").replace("_", "").replace(".", "")
    if not plain.isalnum() or not plain.isascii() or ".." in outputs.split("/"):
        raise SettingsError(
            f"{path}: job.output_dir is {outputs!r}; expected letters, digits, - _ . and /, such as"
            f" {OUTPUTS}/train/my_run"
        )
    return outputs.rstrip("/")


def _variable(values: Mapping[str, str], name: str) -> str | None:
    text = values.get(name, "")
    return None if means_unset(text) else bare(text)


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested sections by dotted key."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
