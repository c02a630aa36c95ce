"""Runs a benchmark as its users do, and reads the figures that it writes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from places import ROOT

SCRIPTS = ROOT / "scripts"
ROW = {"name", "value", "unit", "baseline", "ratio", "target", "met"}


def loaded(name: str) -> ModuleType:
    """Return the script scripts/NAME as a module."""
    loader = SourceFileLoader(name, str(SCRIPTS / name))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, module)  # dataclasses look it up
        loader.exec_module(module)
    return module


def figures(path: Path, *command: str, patience_s: float = 110) -> dict[str, dict[str, Any]]:
    """Run `python COMMAND… --json PATH`; return its rows by name, each whole."""
    done = subprocess.run(
        [sys.executable, *command, "--json", str(path)],
        capture_output=True, text=True, timeout=patience_s, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())
    assert all(set(row) == ROW for row in rows), rows
    return {row["name"]: row for row in rows}
