"""What a checkpoint says that it can do: the scenes it knows, its tasks, and their instructions.

`skills.json` beside the weights → `Skills`, and back. Nothing is guessed from weights: a checkpoint
without the file has no known skills.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl.policies.base import PolicyLoadError
from crane_x7_vla_rl.scenes import COLOUR_NAMES, EPISODE_S

SKILLS: Final = "skills.json"
OPTIONAL: Final = {"temperature", "max_jump_rad", "lets_go"}


@dataclass(frozen=True)
class Skills:
    """The content of skills.json."""

    task: str
    """gymnasium id of the scene."""
    colours: tuple[str, ...]
    """The cubes that there may be."""
    spawn_range_m: float
    """How far they lie from their spots; see scenes.WorldConfig."""
    instructions: tuple[str, ...]
    """Tasks that it can do, in its own words."""
    rate_hz: float
    """At which it is to be asked: so that the arm has come as far as in training."""
    temperature: float = 0.0
    """Of its tokens, where it does best."""
    max_jump_rad: float = 1.0
    """By how much its targets may be away from where the arm is; the loop refuses what is more."""
    lets_go: bool = True
    """Whether it puts down what it holds for a new task; else somebody must take it."""

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str = SKILLS) -> Skills:
        """Return the skills in parsed JSON; raises PolicyLoadError that names what is wrong."""
        wanted = {field.name for field in fields(cls)}
        unknown, missing = sorted(set(raw) - wanted), sorted(wanted - set(raw) - OPTIONAL)
        if unknown:
            raise PolicyLoadError(
                f"{source}: {unknown[0]} is unknown; known: {', '.join(sorted(wanted))}"
            )
        if missing:
            raise PolicyLoadError(f"{source}: {', '.join(missing)} is missing")
        for name, (is_right, expected) in _EXPECTED.items():
            if name in raw and not is_right(raw[name]):
                raise PolicyLoadError(f"{source}: {name} is {raw[name]!r}, expected {expected}")
        listed = {name: tuple(raw[name]) for name in ("colours", "instructions")}
        return cls(**{**raw, **listed})

    @classmethod
    def beside(cls, folder: Path) -> Skills | None:
        """Return what the checkpoint in `folder` says, None where it says nothing.

        Raises PolicyLoadError.
        """
        path = folder / SKILLS
        if not path.is_file():
            return None
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PolicyLoadError(f"{path} cannot be read as JSON: {error}") from error
        if not isinstance(raw, dict):
            raise PolicyLoadError(f"{path} holds a {type(raw).__name__}, expected an object")
        return cls.from_dict(raw, str(path))

    def write(self, folder: Path) -> Path:
        """Write skills.json into the folder."""
        path = folder / SKILLS
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")
        return path


def _number(lowest: float, highest: float) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and lowest <= value <= highest


def _is_words(value: object) -> bool:
    if not isinstance(value, list):
        return False
    return bool(value) and all(isinstance(word, str) and bool(word.strip()) for word in value)


_EXPECTED: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "task": (lambda value: value in EPISODE_S, f"one of {', '.join(EPISODE_S)}"),
    "colours": (
        lambda value: _is_words(value) and set(value) <= set(COLOUR_NAMES),
        f"a list of some of {', '.join(COLOUR_NAMES)}",
    ),
    "spawn_range_m": (_number(0, 0.05), "0 to 0.05 m"),
    "instructions": (_is_words, "a list of tasks in words"),
    "rate_hz": (_number(0.1, 200), "0.1 to 200 Hz"),
    "temperature": (_number(0, 10), "0 to 10"),
    "max_jump_rad": (_number(0.01, 10), "0.01 to 10 rad"),
    "lets_go": (lambda value: isinstance(value, bool), "true or false"),
}
