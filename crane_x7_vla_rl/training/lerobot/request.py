"""A wanted training. Layers of dotted keys (YAML, variables, words) → one checked `Request`.

Keys are those of `train.remote.yaml`: `dataset.*`, `policy.*` and `wandb.*` are LeRobot's,
`training.*` are LeRobot's options without a section, and the rest is in config.py. Words of
LeRobot's own command line (`--steps=100`) are keys of the same file (`training.steps`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from crane_x7_vla_rl.fields import kinds
from crane_x7_vla_rl.suggest import did_you_mean
from crane_x7_vla_rl.training.config import loader
from crane_x7_vla_rl.training.config.loader import Layer
from crane_x7_vla_rl.training.errors import ConfigError
from crane_x7_vla_rl.training.lerobot import options as lerobot
from crane_x7_vla_rl.training.lerobot.config import OwnSections
from crane_x7_vla_rl.training.lerobot.options import OptionError, Unset

TRAINING: Final = "training"
RENAME: Final = "policy.rename_map"
ALIASES: Final[Mapping[str, str]] = {
    "training.lr": "policy.optimizer_lr",
    "training.learning_rate": "policy.optimizer_lr",
    "training.eval_freq": "training.env_eval_freq",
    "training.rename_map": RENAME,
}
"""Key → the key that it means."""
LEROBOTS: Final = ("dataset", "policy", "wandb", "eval", "peft", "env", "sample_weighting")
NOT_HERE: Final[Mapping[str, str]] = {
    "training.output_dir": "set job.output_dir",
    "training.job_name": "set job.name",
    "training.resume": "use --resume",
}
"""Options of LeRobot that this program sets → what to set instead."""


@dataclass(frozen=True)
class Request:
    """What a user wants trained."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """LeRobot's options by name, in the given order; values are converted."""
    own: OwnSections = field(default_factory=OwnSections)

    @property
    def policy_type(self) -> str | None:
        """The policy's type, if it is given."""
        found = self.options.get(lerobot.TYPE)
        return None if found is None else str(found)


@dataclass(frozen=True)
class Wish:
    """How a request is carried out."""

    resume: Sequence[str] = ()
    """See resuming.find."""
    dry: bool = False
    """Print LeRobot's words and end."""
    instruction: str = ""
    """For recordings without one, when they are converted."""
    epochs: int | None = None
    """Passes over the data set, if training.steps is not set."""
    warmup_ratio: float | None = None
    """Share of the steps in which the learning rate rises."""
    unit: str = "rad"
    """Unit of the data set's joints, for policy_io.yaml."""


def build(layers: Sequence[Layer]) -> Request:
    """Return the request; later layers override earlier ones.

    Raises ConfigError with all faults.
    """
    mine = set(kinds(OwnSections))
    own: list[Layer] = []
    theirs: dict[str, tuple[str, Any]] = {}
    problems: list[str] = []
    for layer in layers:
        ours: dict[str, Any] = {}
        for key, value in layer.values.items():
            key = ALIASES.get(key, key)
            section = key.partition(".")[0]
            if section in mine:
                ours[key] = value
            elif key in NOT_HERE and value not in (None, False):
                problems.append(f"{layer.source}: {key} is not set here; {NOT_HERE[key]}")
            elif section in (TRAINING, *LEROBOTS, *lerobot.table()["choices"]):
                theirs[key] = (layer.source, value)
            else:
                known = [*mine, TRAINING, *LEROBOTS]
                hint = did_you_mean(section, known) or f"; known: {', '.join(known)}"
                problems.append(f"{layer.source}: the section {section} is unknown{hint}")
        own.append(Layer(layer.source, ours))
    options, wrong = _options(theirs)
    try:
        sections = loader.build(OwnSections, own)
    except ConfigError as error:
        sections = OwnSections()
        problems.append(str(error))
    problems += wrong
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        lines = "".join(f"\n  - {text}" for text in problems)
        raise ConfigError(f"{len(problems)} problems in the configuration:{lines}")
    return Request(options, sections)


def _options(given: Mapping[str, tuple[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """Return LeRobot's options, and what is wrong."""
    _, kind = given.get(lerobot.TYPE, ("", None))
    options: dict[str, Any] = {}
    problems: list[str] = []
    if kind is not None and kind not in lerobot.policy_types():
        known = lerobot.policy_types()
        problems.append(
            f"{given[lerobot.TYPE][0]}: policy.type is {kind!r}, expected one of"
            f" {', '.join(known)}{did_you_mean(str(kind), known)}"
        )
        kind = None
    renamed: dict[str, str] = {}
    for key, (source, value) in given.items():
        if key == RENAME or key.startswith(f"{RENAME}."):
            value = lerobot.read_json(value)
            if isinstance(value, Mapping):
                renamed |= value
            elif value is not None:
                renamed[key.removeprefix(f"{RENAME}.")] = value
            continue
        name = key.removeprefix(f"{TRAINING}.")
        try:
            _put(options, name, lerobot.convert(name, value, kind))
        except Unset:
            continue
        except OptionError as error:
            text = str(error)
            if name != key:
                text = f"{TRAINING}.{text}".replace("did you mean ", f"did you mean {TRAINING}.")
            problems.append(f"{source}: {text}")
    if renamed:
        options[lerobot.RENAME] = renamed
    return options, problems


def _put(options: dict[str, Any], name: str, value: Any) -> None:
    """Set an option; `policy.normalization_mapping.STATE` is a part of a mapping."""
    section, _, rest = name.partition(".")
    head, dot, part = rest.partition(".")
    if section == lerobot.POLICY and dot:
        options.setdefault(f"{section}.{head}", {})[part] = value
    else:
        options[name] = value
