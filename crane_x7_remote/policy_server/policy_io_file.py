"""`PolicyIO` from a YAML file, a preset or a server's metadata. Name, path or map → `PolicyIO`.

Every key that a policy needs must be there: an error names the file, the key, what came and what
may come. docs/policy-server.md describes the format; `PRESETS` are complete examples.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast, get_args

from crane_x7_remote.errors import RemoteError
from crane_x7_remote.policy_server.policy_io import (
    ALL_PLACES,
    ARM_PLACES,
    GRIPPER,
    MOST_STEPS,
    TOOL_HINT,
    ActionKind,
    ActionOutput,
    Gripper,
    ImageInput,
    JointColumns,
    Key,
    PolicyIO,
    Source,
    StateInput,
    Unit,
)
from crane_x7_vla_rl.fields import quoted
from crane_x7_vla_rl.file_errors import why
from crane_x7_vla_rl.image_geometry import Colour, ImageForm, Layout, Resize, Values
from crane_x7_vla_rl.robot import JOINT_NAMES
from crane_x7_vla_rl.suggest import did_you_mean
from crane_x7_vla_rl.yaml_file import YamlError, read_yaml

FOLDER: Final = Path(__file__).parent / "presets"
PRESETS: Final = ("droid", "aloha", "libero", "lerobot", "crane_x7")
SIZE: Final = re.compile(r"([1-9]\d{0,3})x([1-9]\d{0,3})")
GROUPS: Final = {"all": ALL_PLACES, "arm": ARM_PLACES}
NONE: Final = object()


class PolicyIoError(RemoteError):
    """A description of inputs and outputs is missing or wrong; names the file and the key."""


def read(name_or_path: str | Path) -> PolicyIO:
    """Return the description in a file or of a preset; raises PolicyIoError."""
    content, source = read_map(name_or_path)
    return from_map(content, source)


def read_map(name_or_path: str | Path) -> tuple[Mapping[str, Any], str]:
    """Return the content of a file or preset as it goes into metadata, and its name for messages;
    raises PolicyIoError."""
    text = str(name_or_path)
    path = FOLDER / f"{text}.yaml" if text in PRESETS else Path(text).expanduser()
    if text not in PRESETS and not path.is_file():
        hint = did_you_mean(text, PRESETS) or f"; presets: {', '.join(PRESETS)}"
        raise PolicyIoError(f"{text}: this file does not exist, and no preset has this name{hint}")
    try:
        content = read_yaml(path)
    except (OSError, YamlError) as error:
        raise PolicyIoError(f"{path}: {why(error)}") from error
    if not isinstance(content, Mapping):
        raise PolicyIoError(f"{path} holds {quoted(content)}, expected images, state, action, …")
    return content, text


def from_map(content: object, source: str) -> PolicyIO:
    """Return the description in a map with the keys of the files; raises PolicyIoError."""
    top = _Section(content, source, "")
    top.only("images", "state", "prompt", "action")
    return PolicyIO(
        images=_images(top.sections("images")),
        state=tuple(_state(each) for each in top.sections("state", may_be_empty=True)),
        prompt=top.key("prompt"),
        action=_action(top.section("action")),
        source=source,
    )


def check_cameras(io: PolicyIO, there: Collection[str]) -> None:
    """Raise PolicyIoError if a camera is wanted that is not among those that are `there`."""
    for at, image in enumerate(io.images):
        if image.source in io.more_cameras and image.source not in there:
            raise PolicyIoError(
                f"{io.source}: images[{at}] ({'/'.join(image.key)}) wants the wrist camera, and"
                " there is none: to drive, set WRIST_CAMERA_TOPIC (--wrist-camera-topic) to its"
                " topic, such as /wrist/image_raw/compressed; for a policy that was trained with a"
                " black picture here, set source: black in a file of your own (POLICY_IO)."
                " evaluate and serve-policy have the base camera only"
            )


def _images(entries: Sequence[_Section]) -> tuple[ImageInput, ...]:
    """Return the pictures; one camera under two keys is refused, unless the file wants that."""
    images: list[ImageInput] = []
    for entry in entries:
        image = _image(entry)
        before = [each for each in images if each.source == image.source != "black"]
        if before and not entry.flag("same"):
            raise entry.wrong(
                "source",
                f"another camera than that of {'/'.join(before[0].key)} (camera, wrist or black);"
                " if the policy was trained with one camera under both keys, add same: true",
            )
        images.append(image)
    return tuple(images)


def _image(entry: _Section) -> ImageInput:
    entry.only("key", "source", "same", "size", "resize", "layout", "colour", "range")
    source = cast(Source, entry.choice("source", get_args(Source)))
    size = entry.size("size")
    if source == "black" and size is None:
        raise entry.wrong("size", "WxH as in 224x224, the size of the black picture")
    resize = None
    if size is not None or entry.has("resize"):
        resize = cast(Resize, entry.choice("resize", get_args(Resize)))
    form = ImageForm(
        size,
        resize,
        cast(Layout, entry.choice("layout", get_args(Layout))),
        cast(Colour, entry.choice("colour", get_args(Colour))),
        cast(Values, entry.choice("range", get_args(Values))),
    )
    return ImageInput(entry.key("key"), source, form)


def _state(entry: _Section) -> StateInput:
    entry.only("key", "joints", "unit", "gripper")
    return StateInput(entry.key("key"), _columns(entry))


def _action(entry: _Section) -> ActionOutput:
    entry.only("key", "kind", "joints", "unit", "scale", "gripper", "period_s", "chunk_steps")
    kind = cast(ActionKind, entry.choice("kind", get_args(ActionKind), f"; {TOOL_HINT}"))
    columns = _columns(entry)
    if not any(place is not None for place in columns.places):
        raise entry.wrong("joints", "at least one joint")
    if kind != "joint_target" and GRIPPER in columns.places and columns.gripper is None:
        raise entry.wrong(
            "gripper", f"{{closed, open, closed_rad, open_rad}}: with {kind} it is absolute"
        )
    if kind == "joint_target" and entry.has("scale"):
        raise entry.wrong("scale", "no such key: only deltas have a scale")
    steps = entry.number("chunk_steps", default=None)
    if steps is not None and not (steps.is_integer() and 1 <= steps <= MOST_STEPS):
        raise entry.wrong("chunk_steps", f"a whole number from 1 to {MOST_STEPS}")
    period_s = entry.number("period_s")
    assert period_s is not None
    if not 0.001 <= period_s <= 10:
        raise entry.wrong("period_s", "the seconds of one step, 0.001 to 10")
    scale = entry.number("scale", default=1.0)
    assert scale is not None
    return ActionOutput(
        entry.key("key"), kind, columns, period_s, scale, None if steps is None else int(steps)
    )


def _columns(entry: _Section) -> JointColumns:
    unit = cast(Unit, entry.choice("unit", get_args(Unit)))
    gripper = _gripper(entry.section("gripper")) if entry.has("gripper") else None
    columns = JointColumns(entry.joints("joints"), unit, gripper)
    if unit == "percent" and GRIPPER in columns.places and gripper is None:
        raise entry.wrong("gripper", "{closed, open, closed_rad, open_rad}, as the unit is percent")
    return columns


def _gripper(entry: _Section) -> Gripper:
    names = ("closed", "open", "closed_rad", "open_rad")
    entry.only(*names)
    values = []
    for name in names:
        value = entry.number(name)
        assert value is not None
        values.append(value)
    gripper = Gripper(*values)
    for one, other in (("closed", "open"), ("closed_rad", "open_rad")):
        if getattr(gripper, one) == getattr(gripper, other):
            raise entry.wrong(other, f"another value than {one}")
    return gripper


class _Section:
    """A map of the file, with its place in it."""

    def __init__(self, content: object, source: str, place: str) -> None:
        if not isinstance(content, Mapping):
            at = f"{place} " if place else ""
            raise PolicyIoError(f"{source}: {at}is {quoted(content)}, expected a map of keys")
        self._content, self._source, self._place = content, source, place

    def only(self, *known: str) -> None:
        """Refuse keys other than these."""
        for name in self._content:
            if name not in known:
                raise PolicyIoError(
                    f"{self._source}: {self._at(name)} is unknown"
                    f"{did_you_mean(str(name), known) or '; known: ' + ', '.join(known)}"
                )

    def has(self, name: str) -> bool:
        return name in self._content

    def wrong(self, name: str, expected: str) -> PolicyIoError:
        """Return the error for a key that is missing or has another value."""
        value = self._content.get(name, NONE)
        came = "missing" if value is NONE else quoted(value)
        return PolicyIoError(f"{self._source}: {self._at(name)} is {came}; expected {expected}")

    def section(self, name: str) -> _Section:
        if not isinstance(self._content.get(name), Mapping):
            raise self.wrong(name, "a map of keys")
        return _Section(self._content[name], self._source, self._at(name))

    def sections(self, name: str, may_be_empty: bool = False) -> list[_Section]:
        found = self._content.get(name)
        if not isinstance(found, list) or not (found or may_be_empty):
            raise self.wrong(name, "a list of maps, each with its key")
        return [
            _Section(each, self._source, f"{self._at(name)}[{at}]") for at, each in enumerate(found)
        ]

    def key(self, name: str) -> Key:
        value = self._content.get(name)
        words = [value] if isinstance(value, str) else value
        if not isinstance(words, list) or not words:
            raise self.wrong(name, "a key of the message, or a list of keys of maps in maps")
        if not all(isinstance(word, str) and word for word in words):
            raise self.wrong(name, "texts")
        return tuple(words)

    def choice(self, name: str, choices: Collection[str], hint: str = "") -> str:
        value = self._content.get(name)
        if value not in choices:
            raise self.wrong(name, " or ".join(choices) + hint)
        return str(value)

    def number(self, name: str, default: float | object | None = NONE) -> float | None:
        value = self._content.get(name, default)
        if value is None and default is None:
            return None
        if isinstance(value, str):  # YAML reads 5e-2 as text
            try:
                value = float(value)
            except ValueError:
                value = NONE
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, "a number")
        if not math.isfinite(value):
            raise self.wrong(name, "a finite number")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self._content.get(name, False)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def size(self, name: str) -> tuple[int, int] | None:
        value = self._content.get(name)
        if value is None:
            return None
        match = SIZE.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise self.wrong(name, "WxH as in 224x224")
        return int(match[1]), int(match[2])

    def joints(self, name: str) -> tuple[int | None, ...]:
        value = self._content.get(name)
        if isinstance(value, str) and value in GROUPS:
            return GROUPS[value]
        if not isinstance(value, list) or not value:
            raise self.wrong(name, "all, arm, or a list of joints in the policy's order")
        for each in value:
            if each is not None and each not in JOINT_NAMES:
                raise self.wrong(
                    name,
                    f"null or names of joints; {quoted(each)} is unknown"
                    f"{did_you_mean(str(each), JOINT_NAMES)}",
                )
        found = [None if each is None else JOINT_NAMES.index(each) for each in value]
        named = [place for place in found if place is not None]
        if len({*named}) < len(named):
            raise self.wrong(name, "each joint once")
        return tuple(found)

    def _at(self, name: object) -> str:
        return f"{self._place}.{name}" if self._place else str(name)
