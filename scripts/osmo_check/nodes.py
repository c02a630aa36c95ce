"""YAML with the line of every key. Text → a tree of `Node`s, read by rules with clear faults."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from crane_x7_vla_rl.suggest import did_you_mean
from osmo_check.fault import Fault

WORDS: Final = {dict: "keys and values", list: "a list", str: "text", type(None): "nothing"}


@dataclass
class Faults:
    """All faults so far."""

    offset: int = 0
    """Added to each line."""
    rendered: bool = False
    found: list[Fault] = field(default_factory=list)

    def add(self, node: Node, what: str) -> None:
        """Note a fault at a node."""
        self.found.append(Fault(node.line + self.offset, node.path, what, self.rendered))


@dataclass(frozen=True)
class Node:
    """A value of a YAML text and where it is."""

    value: Any
    """dict[str, Node], list[Node], or a plain value."""
    line: int
    path: str

    def plain(self) -> Any:
        """Return the value without places."""
        if isinstance(self.value, dict):
            return {key: each.plain() for key, each in self.value.items()}
        if isinstance(self.value, list):
            return [each.plain() for each in self.value]
        return self.value

    def get(self, key: str) -> Node | None:
        """Return the value at a key of a mapping."""
        found = self.value.get(key) if isinstance(self.value, dict) else None
        return found if isinstance(found, Node) else None

    def items(self, key: str) -> list[Node]:
        """Return the entries of the list at a key; [] if it is missing or no list."""
        found = self.get(key)
        return found.value if found is not None and isinstance(found.value, list) else []

    def texts(self) -> Iterator[str]:
        """Yield every text below this node, keys left out."""
        if isinstance(self.value, dict | list):
            for each in self.value.values() if isinstance(self.value, dict) else self.value:
                yield from each.texts()
        elif isinstance(self.value, str):
            yield self.value


def parse(text: str, faults: Faults) -> Node | None:
    """Return the tree of a YAML text; None, with a fault, if it is not YAML."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        return None if root is None else _node(root, "", faults)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        faults.add(Node(None, line, "YAML"), f"cannot be read: {error.problem or error.context}")
        return None


def _node(node: yaml.Node, path: str, faults: Faults) -> Node:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        content: dict[str, Node] = {}
        for name, value in node.value:
            key = str(name.value)
            inner = f"{path}.{key}" if path else key
            if key in content:
                place = Node(None, name.start_mark.line + 1, inner)
                faults.add(place, f"stands twice, also on line {content[key].line + faults.offset}")
            found = _node(value, inner, faults)
            content[key] = Node(found.value, name.start_mark.line + 1, inner)
        return Node(content, line, path)
    if isinstance(node, yaml.SequenceNode):
        return Node(
            [_node(each, f"{path}[{at}]", faults) for at, each in enumerate(node.value)], line, path
        )
    return Node(yaml.SafeLoader("").construct_object(node), line, path)


def mapping(
    node: Node,
    known: Collection[str],
    faults: Faults,
    needed: Collection[str] = (),
    gone: dict[str, str] | None = None,
) -> bool:
    """Whether a node is a mapping; notes unknown and missing keys. `gone`: key → what to do."""
    if not isinstance(node.value, dict):
        faults.add(node, f"is {kind(node)}, expected {', '.join(known)}")
        return False
    for key, value in node.value.items():
        if key not in known:
            hint = (gone or {}).get(key)
            near = did_you_mean(key, known) or f"; known: {', '.join(known)}"
            faults.add(value, f"is unknown; {hint}" if hint else f"is unknown{near}")
    for key in needed:
        if key not in node.value:
            faults.add(node, f"lacks {key}")
    return True


def expect(node: Node | None, kinds: tuple[type, ...], words: str, faults: Faults) -> bool:
    """Whether a node has one of the kinds; notes it otherwise. None, a missing key, has not."""
    if node is None:
        return False
    is_bool = isinstance(node.value, bool) and bool not in kinds
    if isinstance(node.value, kinds) and not is_bool:
        return True
    faults.add(node, f"is {kind(node)}, expected {words}")
    return False


def kind(node: Node) -> str:
    """Return what a node is, for messages."""
    found = WORDS.get(type(node.value))
    return f"{node.value!r}" if found in (None, "text") else str(found)
