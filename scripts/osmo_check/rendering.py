"""A workflow file as OSMO renders it: text and default values → the text that is run.

OSMO cuts the file into top-level sections, keeps the one called `workflow`, protects its own tokens
(`{{output}}`, `{{input:0}}`, `{{host:task}}`, `{{workflow_id}}`, without spaces) and gives the rest
to Jinja with `StrictUndefined` and the values of `default-values`. A submission renders twice: the
second time with the files that `localpath` names inside, and without default values.
[NVIDIA/OSMO at 1da31e1: src/lib/utils/workflow.py, src/utils/job/workflow.py]
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import jinja2
import yaml
from jinja2 import meta
from jinja2.sandbox import SandboxedEnvironment

from crane_x7_vla_rl.suggest import did_you_mean
from crane_x7_vla_rl.yaml_file import YamlError, parse_yaml
from osmo_check.fault import Fault

SECTIONS: Final = ("version", "workflow", "default-values")
SECTION: Final = re.compile(r"^([a-zA-Z][a-zA-Z0-9_-]*):", re.M)
WORDS: Final = "uuid|workflow_id|output|input:[^}]+|host:[^}]+"
TOKEN: Final = re.compile(rf"{{{{(?:{WORDS})}}}}")
SPACED: Final = re.compile(r"{{(?:\s+(?:workflow_id|output|input:[^}]*|host:[^}]*)\s*|"
                           r"(?:workflow_id|output|input:[^}]*\S|host:[^}]*\S)\s+)}}")  # fmt: skip
RESERVED: Final = ("uuid", "workflow_id", "output")
LONGEST_S: Final = 5.0
"""Of a template, on a busy machine."""
MARKS: Final = ("{{", "{%", "{#")


@dataclass(frozen=True)
class Rendered:
    """A file after Jinja."""

    text: str
    """The section `workflow`."""
    same_lines: bool
    """Whether its lines are those of the file, so that a fault can name them."""
    offset: int
    """Lines of the file before it."""


def environment() -> jinja2.Environment:
    """Return Jinja as OSMO configures it."""
    return SandboxedEnvironment(undefined=jinja2.StrictUndefined)


def sections(text: str) -> tuple[dict[str, tuple[int, str]], list[Fault]]:
    """Return {section: (line, its text)} as OSMO cuts them, and what is wrong with them."""
    found: dict[str, tuple[int, str]] = {}
    faults: list[Fault] = []
    starts = [*SECTION.finditer(text)]
    for at, match in enumerate(starts):
        end = starts[at + 1].start() if at + 1 < len(starts) else len(text)
        name, line = match[1], text.count("\n", 0, match.start()) + 1
        if name not in SECTIONS:
            hint = did_you_mean(name, SECTIONS) or f"; expected {', '.join(SECTIONS)}"
            faults.append(Fault(line, name, f"is no section of a workflow file{hint}"))
        elif name in found:
            faults.append(Fault(line, name, f"stands twice, also on line {found[name][0]}"))
        else:
            found[name] = (line, text[match.start() : end])
    if "workflow" not in found:
        faults.append(Fault(1, "workflow", "is missing; expected a section `workflow:`"))
    before = text[: starts[0].start()] if starts else text
    outside = before + "".join(part for name, (_, part) in found.items() if name != "workflow")
    if any(mark in _without_comments(outside) for mark in MARKS):
        faults.append(
            Fault(1, "default-values", "holds Jinja outside the section workflow, where OSMO does"
                  " not render it; write plain values"),
        )  # fmt: skip
    return found, faults


def _without_comments(text: str) -> str:
    return re.sub(r"(?m)^\s*#.*$", "", text)


def default_values(part: tuple[int, str] | None) -> tuple[dict[str, Any], list[Fault]]:
    """Return the values of the section `default-values`, and what is wrong with them."""
    if part is None:
        return {}, []
    line, text = part
    try:
        content = parse_yaml(text)["default-values"]
    except (YamlError, TypeError) as error:
        return {}, [Fault(line, "default-values", str(error))]
    if content is None:
        return {}, []
    if not isinstance(content, Mapping):
        return {}, [Fault(line, "default-values", "holds no keys and values")]
    faults = []
    for number, name in enumerate(content, line + 1):
        where = f"default-values.{name}"
        if name in RESERVED:
            faults.append(Fault(number, where, "is a token of OSMO, which ignores this value"))
        elif not str(name).isidentifier():
            faults.append(Fault(number, where, "is no name for Jinja; use letters, digits and _"))
    return dict(content), [*faults, *_changed_numbers(line, text)]


def _changed_numbers(line: int, text: str) -> Iterator[Fault]:
    """Yield the numbers that Jinja prints otherwise than they are written, as 1.0e-5 → 1e-05."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert root is not None
    for event in root.value[0][1].value:
        for node in _scalars(event[1]):
            if not node.tag.endswith((":float", ":int")):
                continue
            printed = str(yaml.safe_load(node.value))
            if printed != node.value:
                yield Fault(
                    line + node.start_mark.line, f"default-values.{event[0].value}",
                    f"is the number {node.value}, which a template prints as {printed}; quote it"
                    f' ("{node.value}") to keep its text',
                )  # fmt: skip


def _scalars(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _scalars(item)
    elif isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            yield from _scalars(value)


def set_values(values: Mapping[str, Any], given: Mapping[str, str], text: bool) -> dict[str, Any]:
    """Return `values` with those of `--set` (numbers where they look so) or `--set-string`."""
    found = dict(values)
    for name, value in given.items():
        found[name] = value if text else _number(value)
    return found


def _number(value: str) -> Any:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def render(part: tuple[int, str], values: Mapping[str, Any]) -> tuple[Rendered | None, list[Fault]]:
    """Return the section `workflow` after Jinja, and what is wrong; None if Jinja refuses it."""
    line, text = part
    faults = [*_marks(line, text)]
    protected: dict[str, str] = {}

    def protect(match: re.Match[str]) -> str:
        name = f"token_{len(protected)}"
        protected[name] = match[0]
        return f"{{{{{name}}}}}"

    template = TOKEN.sub(protect, text)
    if faults:
        return None, faults
    try:
        wanted = meta.find_undeclared_variables(environment().parse(template)) - {*protected}
        with limited():
            rendered = environment().from_string(template).render({**values, **protected})
    except (TimeoutError, MemoryError, OverflowError) as error:
        return None, [Fault(line, "Jinja", f"{error or 'takes too much memory'}; OSMO stops it")]
    except jinja2.TemplateError as error:
        return None, [_jinja_fault(error, line, text, values)]
    faults += [
        Fault(line, f"default-values.{name}", "is used nowhere in the workflow")
        for name in values
        if name not in wanted
    ]
    return Rendered(rendered, "{%" not in text, line - 1), faults


@contextmanager
def limited() -> Iterator[None]:
    """Stop what takes longer than a template may; OSMO gives it 0.5 s."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"takes longer than {LONGEST_S:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _marks(line: int, text: str) -> Iterator[Fault]:
    for number, content in enumerate(text.splitlines(), line):
        if "{#" in content:
            yield Fault(
                number, "{#", "opens a comment of Jinja, which swallows text up to the next #}; in"
                ' a shell script, count with "$#" after `set -- "${xs[@]}"`; for comments use #',
            )  # fmt: skip
        for match in SPACED.finditer(content):
            plain = re.sub(r"\s", "", match[0])
            yield Fault(
                number, match[0], f"has spaces, so Jinja reads it and not OSMO; write {plain}"
            )


def _jinja_fault(
    error: jinja2.TemplateError, line: int, text: str, values: Mapping[str, Any]
) -> Fault:
    message = str(error.message or error)
    found = re.match(r"'(\w+)' is undefined", message)
    if found is None:
        at = getattr(error, "lineno", None)
        return Fault(line if at is None else line + at - 1, "Jinja", message)
    name = found[1]
    at = next(
        (number for number, content in enumerate(text.splitlines(), line)
         if re.search(rf"{{[{{%][^}}]*\b{name}\b", content)),
        line,
    )  # fmt: skip
    hint = did_you_mean(name, map(str, values)) or "; add it to default-values, or give --set"
    return Fault(at, name, f"has no value in default-values{hint}")
