"""LeRobot's training options: their names, kinds and words. Key and value → `--key=value`.

`options.json` lists those of the pinned release; `scripts/render-lerobot-options` writes it. So a
wrong name or value is an error in milliseconds, with the nearest name, before LeRobot starts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl.fields import quoted
from crane_x7_vla_rl.suggest import nearest

FILE: Final = Path(__file__).with_name("options.json")
EXPECTED: Final[Mapping[str, str]] = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
}
POLICY: Final = "policy"
RENAME: Final = "rename_map"
OTHER_FORM: Final = "other"
"""Kind of values that are lists or mappings: LeRobot checks them."""
UNCHECKED: Final = ("env", "optimizer", "scheduler", "reward_model", "dataset.image_transforms")
"""Sections whose keys depend on a type that LeRobot knows."""
PATH: Final = "policy.path"
CONFIG_PATH: Final = "config_path"
"""LeRobot's word for a train_config.json to start from."""
TYPE: Final = "policy.type"


class OptionError(ValueError):
    """An option's name or value is wrong; the message fits behind its source."""


class Unset(OptionError):
    """A key without a value, as YAML has it where a value is left out, that cannot be null."""


@cache
def table() -> dict[str, Any]:
    """Return what the pinned release knows: top, choices, sections, policy and policies."""
    content: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return content


def policy_types() -> tuple[str, ...]:
    """Return the types of policies that the pinned release trains."""
    return tuple(table()["policies"])


def of_policy(kind: str | None) -> dict[str, str]:
    """Return {field: kind} of a policy type; of all types if it is None or unknown."""
    common, each = table()["policy"], table()["policies"]
    if kind in each:
        return {**common, **each[kind]}
    return {**common, **{name: form for one in each.values() for name, form in one.items()}}


def has(policy_type: str | None, field: str) -> bool:
    """Whether policies of this type have the field."""
    return field in of_policy(policy_type)


def convert(key: str, value: Any, policy_type: str | None = None) -> Any:
    """Return `value` in the type of the option `key`; raises OptionError for an unknown key.

    YAML reads 5e-5 as text and words are all text: both become numbers.
    """
    form = _form(key, policy_type)
    if form is None:
        return value
    base, optional = form.removesuffix("?"), form.endswith("?")
    if optional and value in (None, "null", "None"):
        return None
    if value is None:
        raise Unset(key)
    try:
        return _CONVERT[base](value)
    except (TypeError, ValueError):
        raise OptionError(f"{key} is {quoted(value)}, expected {EXPECTED[base]}") from None


def _form(key: str, policy_type: str | None) -> str | None:
    """Return the kind of an option's values; None if LeRobot alone can tell."""
    found = table()
    if key == CONFIG_PATH:
        return "str?"
    if key in found["top"]:
        return str(found["top"][key])
    section, _, name = key.partition(".")
    if any(key.startswith(f"{each}.") for each in UNCHECKED) or key == RENAME:
        return None
    if section == POLICY and name:
        return _policy_form(name, policy_type)
    if name in found["sections"].get(section, {}):
        return str(found["sections"][section][name])
    raise OptionError(f"{key} is unknown{_hint(key, names(policy_type))}")


def _policy_form(name: str, policy_type: str | None) -> str:
    if name in ("type", "path"):
        return "str?"
    fields = of_policy(policy_type)
    head = name.partition(".")[0]
    if head != name and fields.get(head, "").startswith(OTHER_FORM):
        return OTHER_FORM
    if name in fields:
        return fields[name]
    others = [kind for kind, each in table()["policies"].items() if name in each]
    if others:
        raise OptionError(
            f"policy.{name} is no option of {policy_type}; policies that have it:"
            f" {', '.join(others)}"
        )
    known = [f"{POLICY}.{field}" for field in (*fields, "type", "path")]
    raise OptionError(f"policy.{name} is unknown{_hint(f'policy.{name}', known)}")


def names(policy_type: str | None = None) -> list[str]:
    """Return every option's name."""
    found = table()
    return [
        *found["top"],
        RENAME,
        *(f"{name}.{field}" for name, each in found["sections"].items() for field in each),
        *(f"{POLICY}.{field}" for field in (*of_policy(policy_type), "type", "path")),
    ]


def _hint(key: str, known: Iterable[str]) -> str:
    """Return the nearest name; a shared section does not make two names near."""
    section, _, name = key.rpartition(".")
    inside = {one.rpartition(".")[2]: one for one in known if one.rpartition(".")[0] == section}
    near = [inside[one] for one in nearest(name, inside, 0.7)] or nearest(key, known, 0.8)
    return f"; did you mean {near[0]}?" if near else ""


def _bool(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise ValueError
    return value


def _int(value: Any) -> int:
    if isinstance(value, bool):
        raise ValueError
    number = float(value)
    if not number.is_integer():
        raise ValueError
    return int(value) if isinstance(value, str) and value.lstrip("+-").isdigit() else int(number)


def _float(value: Any) -> float:
    if isinstance(value, bool) or math.isnan(number := float(value)):
        raise ValueError
    return number


def _str(value: Any) -> str:
    if isinstance(value, Mapping | list):
        raise ValueError
    return str(value)


def read_json(value: Any) -> Any:
    """Return what a word in JSON means; other values are unchanged."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


_CONVERT: Final = {"bool": _bool, "int": _int, "float": _float, "str": _str, OTHER_FORM: read_json}


def words(options: Mapping[str, Any]) -> list[str]:
    """Return LeRobot's command-line words, `--key=value`."""
    return [f"--{key}={text(value)}" for key, value in options.items()]


def text(value: Any) -> str:
    """Return a value as LeRobot's parser, which is YAML's, reads it back."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return _decimal(value)
    if isinstance(value, Mapping) or (isinstance(value, Sequence) and not isinstance(value, str)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _decimal(value: float) -> str:
    """Return a number with a point: YAML 1.1 reads 5e-05 as text, 5.0e-05 as a number."""
    mantissa, mark, exponent = repr(value).partition("e")
    return repr(value) if not mark or "." in mantissa else f"{mantissa}.0e{exponent}"
