"""What the import contracts in pyproject.toml cannot say about the two packages."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("crane_x7_remote", "crane_x7_vla_rl")
TREES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
}
MAY_READ_THE_ENVIRONMENT = {
    "crane_x7_remote/settings.py",
    "crane_x7_vla_rl/training/settings.py",
    "crane_x7_vla_rl/training/lerobot/save_whole.py",  # runs alone, in LeRobot's environment
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
(NUMPY_ALONE,) = (
    contract["source_modules"]
    for contract in PROJECT["tool"]["importlinter"]["contracts"]
    if contract["name"].endswith("need numpy alone")
)


def reads_environment(node: ast.AST) -> bool:
    """Whether `node` is os.environ, os.environb or os.getenv, or imports one of them."""
    names = {"environ", "environb", "getenv", "getenvb"}
    if isinstance(node, ast.Attribute):
        return isinstance(node.value, ast.Name) and node.value.id == "os" and node.attr in names
    return isinstance(node, ast.ImportFrom) and node.module == "os" and any(
        alias.name in names for alias in node.names
    )  # fmt: skip


def private_names(tree: ast.Module) -> list[str]:
    """Return the `_names` of our other files that a file imports, or reads as attributes."""
    ours = [
        alias
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGES)
        for alias in node.names
    ]
    known = {alias.asname or alias.name for alias in ours}
    read = [
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in known
    ]
    return [
        name
        for name in (*(alias.name for alias in ours), *read)
        if name.startswith("_") and not name.startswith("__")
    ]


def test_the_environment_is_read_in_the_two_settings_files_alone() -> None:
    found = {name for name, tree in TREES.items() if any(map(reads_environment, ast.walk(tree)))}
    assert found == MAY_READ_THE_ENVIRONMENT


def test_no_file_uses_a_private_name_of_another() -> None:
    assert not {name: found for name, tree in TREES.items() if (found := private_names(tree))}


@pytest.mark.parametrize("name", NUMPY_ALONE)
def test_a_ground_floor_file_needs_no_package_but_numpy(name: str) -> None:
    code = (
        f"import sys; before = set(sys.modules); import {name};"
        " print(*{module.partition('.')[0] for module in set(sys.modules) - before})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split()) - sys.stdlib_module_names
    assert loaded <= {"crane_x7_vla_rl", "numpy"}


def scripts() -> list[Path]:
    """Return our Python programs in scripts/, with the files of their folders."""
    files = [path for path in (ROOT / "scripts").rglob("*") if path.is_file()]
    return [
        path
        for path in files
        if path.suffix == ".py" or path.read_bytes().startswith(b"#!/usr/bin/env python")
    ]


def top(nodes: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module's top level, those under a condition included."""
    for node in nodes:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            yield from top(
                [each for each in ast.iter_child_nodes(node) if isinstance(each, ast.stmt)]
            )


@functools.cache
def names(module: str) -> frozenset[str]:
    """Return what stands at the module's top level, and the files of a package."""
    folder = ROOT / module.replace(".", "/")
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    found = {each.stem for each in folder.glob("*")}
    for node in top(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            found |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    return frozenset(found)


def test_what_the_scripts_import_from_the_packages_exists() -> None:
    """Type checks do not see files without .py; a benchmark that nobody has run lately would not
    start."""
    programs = scripts()
    assert len(programs) > 30
    missing = [
        f"{path.relative_to(ROOT)}: {node.module}.{alias.name}"
        for path in programs
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGES)
        for alias in node.names
        if alias.name not in names(str(node.module))
    ]
    assert not missing


def test_no_package_imports_a_file_that_imports_the_package_itself() -> None:
    """The contract of acyclic siblings compares files of one folder, not a folder's __init__."""
    graph = grimp.build_graph(*PACKAGES)
    circles = [
        graph.find_shortest_chain(importer=package, imported=importer)
        for package in graph.modules
        if graph.find_children(package)
        for importer in graph.find_modules_that_directly_import(package)
        if graph.chain_exists(importer=package, imported=importer)
    ]
    assert not circles
