"""Files are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.data.files import read_json, write_json, write_whole


def test_the_file_that_was_written_is_renamed_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"a": 1})
    seen = []

    def write(partial: Path) -> None:
        partial.write_text('{"a": 2}')
        seen.append(partial.stat().st_ino)
        assert read_json(path) == {"a": 1}

    write_whole(path, write)
    assert [path.stat().st_ino] == seen
    assert read_json(path) == {"a": 2}
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def fail(partial: Path) -> None:
        partial.write_text("{")
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        write_whole(path, fail)
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("text", "what"), [("{", "cannot be read"), ("[1]", "holds a list")])
def test_what_is_no_object_is_named(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=f"a.json: {what}"):
        read_json(path)
    with pytest.raises(DataError, match=r"b\.json: cannot be read"):
        read_json(tmp_path / "b.json")
