"""YAML is read whole, or refused with what is given twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from crane_x7_vla_rl.yaml_file import YamlError, parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "has a twice, on lines 1 and 3; keep one"),
        ("a:\n  b: 1\n  b: 2", r"has a\.b twice, on lines 2 and 3"),
        ("a: {b: 1}\na.b: 2", r"has a\.b twice, on lines 1 and 2"),
        ("- {a: 1, a: 2}", r"has 0\.a twice, on lines 1 and 1"),
        ("a: 1\n'a': 2", "has a twice"),
        ("a: [", "is not YAML"),
        ("a: 2026-13-45", "is not YAML"),
        ("[" * 5000, "is not YAML"),
        ("a: 1\n---\nb: 2", "is not YAML"),
        ("!!python/name:os.system x", "is not YAML"),
    ],
)
def test_what_cannot_be_read_whole_is_refused(text: str, said: str) -> None:
    with pytest.raises(YamlError, match=said):
        parse_yaml(text)


def test_what_is_whole_is_read() -> None:
    assert parse_yaml("") is None
    assert parse_yaml("a: {b: 1}\nc: {b: 2}\nd: [{e: 3}, {e: 4}]") == {
        "a": {"b": 1},
        "c": {"b": 2},
        "d": [{"e": 3}, {"e": 4}],
    }
    assert parse_yaml("a: &x {b: 1}\nc:\n  <<: *x\n  b: 2\nd: *x") == {
        "a": {"b": 1},
        "c": {"b": 2},
        "d": {"b": 1},
    }


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"a: \xff")
    with pytest.raises(YamlError, match="is not YAML"):
        read_yaml(tmp_path / "a.yaml")
