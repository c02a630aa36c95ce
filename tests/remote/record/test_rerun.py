"""`--rerun` writes a file if rerun-sdk is installed, and says what to install if it is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from data_rig import seen_twice

from crane_x7_remote.errors import OutputError, RecordError
from crane_x7_remote.record.rerun_file import RerunFile


def test_without_the_package_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(RecordError, match="--rerun needs the package rerun-sdk: pip install"):
        RerunFile(tmp_path / "x.rrd")


def test_episodes_are_appended(tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="needs rerun-sdk")
    path = tmp_path / "x.rrd"
    file = RerunFile(path)
    file.add(0, seen_twice(0))
    first = path.stat().st_size
    file.add(1, seen_twice(1))
    assert path.stat().st_size > first > 1000
    with pytest.raises(OutputError, match="--rerun /no/such"):
        RerunFile(Path("/no/such/x.rrd"))
