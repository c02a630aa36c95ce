"""What all readers of recordings share: errors that say where, and `reader.yaml` → options.

A recording says little about itself: a log may name no rate, or keep its camera under another
topic. Such facts belong to the recordings, so `reader.yaml` lies with them, and every command that
reads the folder needs no flags for them.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, TypeVar

from crane_x7_vla_rl.data.episode import DataError, EpisodeError
from crane_x7_vla_rl.data.source import EpisodeSource
from crane_x7_vla_rl.suggest import did_you_mean
from crane_x7_vla_rl.yaml_file import YamlError, read_yaml

OPTIONS_FILE: Final = "reader.yaml"


class RecordingError(EpisodeError):
    """Part of a recording is missing or wrong."""

    def __init__(self, source: str, field: str, what: str) -> None:
        super().__init__(source, field, what)
        self.source, self.field, self.what = source, field, what

    def __str__(self) -> str:
        return f"{self.source}: {self.field} {self.what}"


class IncompleteError(DataError):
    """Parts of a folder cannot be read; says all of them at once."""

    def __init__(
        self, folder: str, problems: Sequence[DataError], source: EpisodeSource | None = None
    ) -> None:
        super().__init__(folder, problems, source)
        self.folder, self.problems = folder, tuple(problems)
        self.source = source
        """The episodes that can be read; None where none can."""

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return str(self.problems[0])
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        count = len(self.problems)
        return f"{self.folder}: {count} problems; repair these or move them away:\n{lines}"


class _Options(Protocol):
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


OptionsT = TypeVar("OptionsT", bound=_Options)


def read_options(path: Path, kind: type[OptionsT]) -> OptionsT:
    """Return the options in `reader.yaml` beside or in `path`, or `kind`'s defaults without one.

    Raises RecordingError naming the file and the key that is unknown or has a wrong value.
    """
    file = (path if path.is_dir() else path.parent) / OPTIONS_FILE
    if not file.exists():
        return kind()
    try:
        raw = read_yaml(file)
    except (YamlError, OSError) as error:
        raise RecordingError(str(file), "text", str(error)) from error
    if not isinstance(raw, dict):
        raise RecordingError(str(file), "text", f"holds {raw!r}, expected lines of key: value")
    try:
        return kind(**{str(key): _checked(file, kind, str(key), raw[key]) for key in raw})
    except RecordingError:
        raise
    except ValueError as error:
        raise RecordingError(str(file), "value", str(error)) from error


def _checked(file: Path, kind: type[OptionsT], key: str, value: object) -> object:
    hints = typing.get_type_hints(kind)
    if key not in hints:
        hint = did_you_mean(key, hints) or f"; known: {', '.join(hints)}"
        raise RecordingError(str(file), key, f"is unknown{hint}")
    if type(value) is int and _accepts(hints[key], 1.0):
        value = float(value)
    if not _accepts(hints[key], value):
        wanted = getattr(hints[key], "__name__", str(hints[key]).removeprefix("typing."))
        raise RecordingError(str(file), key, f"is {value!r}, expected {wanted}")
    return value


def _accepts(hint: object, value: object) -> bool:
    """Whether `value` fits a plain type, a union of plain types, or a Literal."""
    members = typing.get_args(hint) or (hint,)
    if typing.get_origin(hint) is typing.Literal:
        return value in members
    return any(type(value) is member for member in members)
