"""Skills of a checkpoint: the scenes it knows, its tasks, and their instructions.

`skills.json` next to the weights → `Skills`, and back. Weights are not used to guess: a checkpoint
without the file has no known skills.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from crane_x7_vla_rl.fields import Bound, kinds, one_of, quoted, size_text, some_of, within
from crane_x7_vla_rl.file_errors import kind_in_words, why
from crane_x7_vla_rl.policies.base import PolicyLoadError
from crane_x7_vla_rl.policies.wordings import Wordings
from crane_x7_vla_rl.scenes import COLOUR_NAMES, EPISODE_S

SKILLS: Final = "skills.json"
OPTIONAL: Final = {"temperature", "max_jump_rad", "lets_go", "image_size", "wordings"}

TASKS: Final = Bound(lambda texts: texts and all(map(str.strip, texts)), "a list of tasks in words")


@dataclass(frozen=True)
class Skills:
    """The content of skills.json."""

    task: Annotated[str, one_of(tuple(EPISODE_S))]
    """gymnasium id of the scene."""
    colours: Annotated[tuple[str, ...], some_of(COLOUR_NAMES)]
    """Colours of the cubes that may be in the scene."""
    spawn_range_m: Annotated[float, within(0, 0.05, "m")]
    """Distance of the cubes from their spots; see scenes.WorldConfig."""
    instructions: Annotated[tuple[str, ...], TASKS]
    """Its tasks, in the words that it was trained with."""
    rate_hz: Annotated[float, within(0.1, 200, "Hz")]
    """Rate of predictions: the arm then moves as far between them as in training."""
    temperature: Annotated[float, within(0, 10)] = 0.0
    """Temperature of its tokens with the best success rate."""
    max_jump_rad: Annotated[float, within(0.01, 10, "rad")] = 1.0
    """Largest distance of its targets from the measured joints; the loop refuses more."""
    lets_go: bool = True
    """Whether it puts down a held object for a new task; otherwise a person must take it."""
    image_size: Annotated[str, size_text("320x240")] | None = None
    """Width and height of its training images; its camera may have more."""
    wordings: bool = False
    """Whether other words are resolved to one of its instructions, and any other task is refused;
    otherwise it gets its instruction unchanged."""

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str = SKILLS) -> Skills:
        """Return the skills in parsed JSON; raises PolicyLoadError that names the problem."""
        known = kinds(cls)
        wanted = known.keys()
        unknown, missing = sorted(set(raw) - wanted), sorted(wanted - set(raw) - OPTIONAL)
        if unknown:
            raise PolicyLoadError(
                f"{source}: {unknown[0]} is unknown; known: {', '.join(sorted(wanted))}"
            )
        if missing:
            raise PolicyLoadError(f"{source}: {', '.join(missing)} is missing")
        values = {}
        for name, value in raw.items():
            try:
                values[name] = known[name].convert(value)
                known[name].check(values[name])
            except ValueError as error:
                bound = known[name].bound
                expected = bound.expected if bound else error
                message = f"{source}: {name} is {quoted(value)}, expected {expected}"
                raise PolicyLoadError(message) from None
        skills = cls(**values)
        if skills.wordings:
            Wordings(skills.instructions, source)
        return skills

    @classmethod
    def beside(cls, folder: Path) -> Skills | None:
        """Return the skills of the checkpoint in `folder`, None if it has no file.

        Raises PolicyLoadError.
        """
        path = folder / SKILLS
        if not path.is_file():
            return None
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PolicyLoadError(f"{path} cannot be read as JSON: {why(error)}") from error
        if not isinstance(raw, dict):
            raise PolicyLoadError(f"{path} holds {kind_in_words(raw)}, expected an object")
        return cls.from_dict(raw, str(path))

    def write(self, folder: Path) -> Path:
        """Write skills.json into the folder."""
        path = folder / SKILLS
        content = {name: value for name, value in asdict(self).items() if value is not None}
        path.write_text(json.dumps(content, indent=2) + "\n")
        return path
