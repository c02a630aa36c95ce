"""Errors and options of all readers of recordings. `reader.yaml` → options.

A recording may lack facts that a reader needs: a log may name no rate, or use another topic for its
camera. Such facts belong to the recordings, so `reader.yaml` is in their folder, and commands that
read the folder need no flags for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeVar

from crane_x7_vla_rl.data.episode import DataError, EpisodeError
from crane_x7_vla_rl.data.source import EpisodeSource
from crane_x7_vla_rl.fields import kinds
from crane_x7_vla_rl.suggest import did_you_mean
from crane_x7_vla_rl.yaml_file import YamlError, read_yaml

T = TypeVar("T")

OPTIONS_FILE: Final = "reader.yaml"


class RecordingError(EpisodeError):
    """A part of a recording is missing or invalid."""

    def __init__(self, source: str, field: str, what: str) -> None:
        super().__init__(source, field, what)
        self.source, self.field, self.what = source, field, what

    def __str__(self) -> str:
        return f"{self.source}: {self.field} {self.what}"


class IncompleteError(DataError):
    """Parts of a folder cannot be read; lists all of them."""

    def __init__(
        self, folder: str, problems: Sequence[DataError], source: EpisodeSource | None = None
    ) -> None:
        super().__init__(folder, problems, source)
        self.folder, self.problems = folder, tuple(problems)
        self.source = source
        """The episodes that can be read; None if none can."""

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return str(self.problems[0])
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        count = len(self.problems)
        return f"{self.folder}: {count} problems; repair or remove these:\n{lines}"


def read_options(path: Path, cls: type[T]) -> T:
    """Return the options in `reader.yaml` next to or in `path`, without one the defaults of `cls`.

    Raises RecordingError naming the file and the unknown key or invalid value.
    """
    file = (path if path.is_dir() else path.parent) / OPTIONS_FILE
    if not file.exists():
        return cls()
    try:
        raw = read_yaml(file)
    except (YamlError, OSError) as error:
        raise RecordingError(str(file), "text", str(error)) from error
    if raw is None:  # it contains only comments
        return cls()
    if not isinstance(raw, dict):
        raise RecordingError(str(file), "text", f"holds {raw!r}, expected lines of key: value")
    known, values = kinds(cls), {}
    for key, value in ((str(key), value) for key, value in raw.items()):
        if key not in known:
            hint = did_you_mean(key, known) or f"; known: {', '.join(known)}"
            raise RecordingError(str(file), key, f"is unknown{hint}")
        try:
            values[key] = known[key].convert(value)
            known[key].check(values[key])
        except ValueError as expected:
            raise RecordingError(str(file), key, f"is {value!r}, expected {expected}") from expected
    return cls(**values)
