"""Messages show values as YAML and JSON have them, not as Python does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from places import ROOT

from crane_x7_remote import cli as remote
from crane_x7_vla_rl.fields import quoted
from crane_x7_vla_rl.training import cli as learning

PYTHON: re.Pattern[str] = re.compile(
    r"PosixPath\(|<class|array\(|\b(True|False|None)\b|\('|mappingproxy|<[a-z_.]+ object at"
)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("a", "'a'"), (None, "null"), (True, "true"), (1, "1"), (0.5, "0.5"), (float("inf"), "inf"),
        ([1, None], "[1, null]"), (("a",), '["a"]'), ({"a": True}, '{"a": true}'),
        (Path("/x"), '"/x"'), ({"角": 1}, '{"角": 1}'),
    ],
)  # fmt: skip
def test_a_value_is_quoted_as_a_file_has_it(value: object, said: str) -> None:
    assert quoted(value) == said


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--override", "ppo.learning_rate=null"],
        ["train", "--override", "ppo.epochs=true"],
        ["train", "--override", "env.colours=[red]"],
        ["sft", "--backend", "openvla", "--override", "data.root=[a]"],
        ["evaluate", "--checkpoint", "x", "--swapped", "--colours", "red"],
        ["convert", "/nowhere", "/nowhere/else"],
        ["demo", "--timeout", "0", "1"],
        ["infer", "--vla-center-crop", "--vla-chunk-steps", "x"],
        ["guard", "--guard-topics", "x"],
        ["sim-robot", "--image-size", "3"],
    ],
    ids=" ".join,
)
def test_no_error_shows_python(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main = learning.main if words[0] in learning.COMMANDS else remote.main
    try:
        code = main(words)
    except SystemExit as end:
        code = int(str(end.code))
    said = capsys.readouterr().err
    assert code != 0
    assert said
    assert not PYTHON.search(said), said


def test_no_message_formats_a_path_or_a_list_by_repr() -> None:
    """Names of variables that hold paths or several values; a user's text may be quoted so."""
    suspicious = re.compile(
        r"\{(\w+\.)*(path|folder|output|file|names|colours|sizes|shape|config|options)!r\}"
    )
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for package in ("crane_x7_remote", "crane_x7_vla_rl")
        for path in (ROOT / package).rglob("*.py")
        for match in suspicious.finditer(path.read_text())
    ]
    assert found == []
