"""A whole workflow file: sections, Jinja, structure, and what tasks need of each other.

text → faults; an empty list is a workflow that OSMO 6.3.1 accepts, as far as a file tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from osmo_check import rendering, tasks, values
from osmo_check.fault import Fault
from osmo_check.nodes import Faults, Node, expect, mapping, parse

KEYS: Final = ("name", "pool", "timeout", "resources", "tasks", "groups", "backend")
GONE: Final = {"labels": "OSMO 6.3.1 refuses it; give --label on a newer one"}
GROUP: Final = ("name", "barrier", "ignoreNonleadStatus", "tasks")
GROUP_GONE: Final = {
    **tasks.GONE,
    "workers": "groups is a list; each group has its named tasks, one of them with lead: true",
}
TIMEOUTS: Final = ("exec_timeout", "queue_timeout")
VERSION: Final = 2


@dataclass(frozen=True)
class Given:
    """Values of the command line."""

    numbers: Mapping[str, str] = field(default_factory=dict)
    """Of --set."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Of --set-string."""


def check(text: str, folder: Path, given: Given = Given()) -> tuple[list[Fault], str | None]:
    """Return the faults, and the text that OSMO would run; None if it cannot be rendered.

    `folder` is that of the file: paths of `localpath` are relative to it.
    """
    parts, faults = rendering.sections(text)
    defaults, wrong = rendering.default_values(parts.get("default-values"))
    faults += [*wrong, *_version(parts.get("version"))]
    if "workflow" not in parts:
        return faults, None
    wanted = rendering.set_values(defaults, given.numbers, text=False)
    wanted = rendering.set_values(wanted, given.texts, text=True)
    rendered, wrong = rendering.render(parts["workflow"], wanted)
    faults += wrong
    if rendered is None:
        return faults, None
    notes = Faults(rendered.offset if rendered.same_lines else 0, not rendered.same_lines)
    root = parse(rendered.text, notes)
    if root is not None and (workflow := root.get("workflow")) is not None:
        _workflow(workflow, folder, notes)
    return sorted(
        [*faults, *notes.found], key=lambda each: (each.rendered, each.line)
    ), rendered.text


def _version(part: tuple[int, str] | None) -> list[Fault]:
    if part is None:
        return []
    value = part[1].partition(":")[2].split("#")[0].strip()
    if value.strip("'\"") == str(VERSION):
        return []
    return [Fault(part[0], "version", f"is {value}, expected {VERSION}")]


def _workflow(workflow: Node, folder: Path, faults: Faults) -> None:
    if not mapping(workflow, KEYS, faults, ("name",), GONE):
        return
    values.name(workflow.get("name"), faults)
    resources = workflow.get("resources")
    if resources is not None and expect(resources, (dict,), "resources by name", faults):
        for each in resources.value.values():
            values.resource(each, faults)
    timeout = workflow.get("timeout")
    if timeout is not None and mapping(timeout, TIMEOUTS, faults):
        for each in timeout.value.values():
            values.duration(each, faults)
    groups = _groups(workflow, faults)
    for group in groups:
        for task in group.tasks:
            tasks.check(task, folder, resources, faults)
            tasks.tokens(task, {*group.names}, faults)
    _unique(groups, faults)
    _upstream(groups, faults)


@dataclass(frozen=True)
class _Group:
    name: str
    """"" if it has none."""
    node: Node
    tasks: list[Node]

    @property
    def names(self) -> list[str]:
        """Names of its tasks, as far as they have one."""
        found = [task.get("name") for task in self.tasks]
        return [str(each.value) for each in found if each is not None]


def _groups(workflow: Node, faults: Faults) -> list[_Group]:
    has = [key for key in ("tasks", "groups") if workflow.get(key) is not None]
    if len(has) != 1:
        faults.add(
            workflow, f"has {' and '.join(has) or 'no tasks'}, expected either tasks or groups"
        )
    listed = workflow.get(has[0]) if has else None
    if listed is None or not expect(listed, (list,), "a list", faults):
        if listed is not None and isinstance(listed.value, dict):
            for key, each in listed.value.items():
                if hint := GROUP_GONE.get(key):
                    faults.add(each, hint)
        return []
    if not listed.value:
        faults.add(listed, "is empty, expected one entry or more")
    if has[0] == "tasks":
        return [_Group(f"{_text(task)}-group", task, [task]) for task in listed.value]
    return [_group(node, faults) for node in listed.value]


def _text(node: Node) -> str:
    found = node.get("name")
    return "" if found is None else str(found.value)


def _group(node: Node, faults: Faults) -> _Group:
    if not mapping(node, GROUP, faults, ("name", "tasks"), GROUP_GONE):
        return _Group("", node, [])
    values.name(node.get("name"), faults)
    for key in ("barrier", "ignoreNonleadStatus"):
        if (found := node.get(key)) is not None:
            expect(found, (bool,), "true or false", faults)
    members = node.items("tasks")
    leads = [task for task in members if (lead := task.get("lead")) and lead.value is True]
    if not members:
        faults.add(node, "has no task")
    elif len(members) > 1 and len(leads) != 1:
        faults.add(node, f"has {len(leads)} tasks with lead: true among {len(members)}, expected 1")
    return _Group(_text(node), node, members)


def _unique(groups: list[_Group], faults: Faults) -> None:
    """Tasks and groups share one space of names, without case, - and _ being the same."""
    seen: dict[str, str] = {}
    for group in groups:
        for node, name in [
            (group.node, group.name),
            *((task, _text(task)) for task in group.tasks),
        ]:
            if not name:
                continue
            if node in group.tasks and name != group.name:
                values.name(node.get("name"), faults)
            if (other := seen.get(values.same(name))) is not None:
                faults.add(node, f"is named {name}, which OSMO takes for {other}")
            seen[values.same(name)] = name


def _upstream(groups: list[_Group], faults: Faults) -> None:
    """An input's task must be in a group above."""
    every = {name for group in groups for name in group.names}
    above: set[str] = set()
    for group in groups:
        for task in group.tasks:
            for each in task.items("inputs"):
                named = each.get("task")
                if named is None or ":" in str(named.value) or named.value in above:
                    continue
                if named.value in group.names:
                    why = "is a task of the same group, which starts at the same time"
                elif named.value in every:
                    why = "is a task further below; move it above this one"
                else:
                    why = f"is no task of this workflow; tasks: {', '.join(sorted(every))}"
                faults.add(named, f"{named.value!r} {why}")
        above |= {*group.names}
