"""Strict YAML. A file or a text → plain values; a duplicate key is an error, not a silent loss.

YAML requires unique keys, but PyYAML keeps the last one. A section `a: {b: 1}` and the dotted key
`a.b: 2` name the same value, so that pair is refused as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from crane_x7_vla_rl.file_errors import why

MERGE: Final = "tag:yaml.org,2002:merge"
"""Tag of `<<`, whose keys may be repeated: that is its purpose."""


class YamlError(ValueError):
    """A text is not YAML, or has a key twice; the message fits behind a file's name."""


def read_yaml(path: Path) -> Any:
    """Return the content of the file, None if it is empty; raises YamlError and OSError."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise YamlError(f"is not YAML: {why(error)}") from error


def parse_yaml(text: str) -> Any:
    """Return the content of the text, None if it is empty; raises YamlError."""
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            _refuse_repeated(node, "", {}, set())
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except YamlError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise YamlError(f"is not YAML: {_why(error)}") from error


def _why(error: Exception) -> str:
    """Return the cause in one line, with its place."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if not isinstance(error, yaml.MarkedYAMLError) or mark is None:
        return why(error)
    words = f"{error.problem or error.context} {error.context or ''}".strip()
    return f"line {mark.line + 1}, column {mark.column + 1}: {words}"


def _refuse_repeated(
    node: yaml.Node | None, prefix: str, lines: dict[str, int], visited: set[int]
) -> None:
    """Raise YamlError for the second of two equal dotted keys; `lines` has those seen so far."""
    if isinstance(node, yaml.SequenceNode):
        for at, item in enumerate(node.value):
            _refuse_repeated(item, f"{prefix}{at}.", lines, visited)
    if not isinstance(node, yaml.MappingNode) or id(node) in visited:
        return
    visited.add(id(node))  # an alias may refer to its own anchor
    for name, value in node.value:
        key, line = f"{prefix}{name.value}", name.start_mark.line + 1
        if name.tag != MERGE:
            if key in lines:
                raise YamlError(f"has {key} twice, on lines {lines[key]} and {line}; keep one")
            lines[key] = line
        _refuse_repeated(value, f"{key}.", lines, visited)
