"""The pages name files that exist, and docs/architecture.md every room there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from places import ROOT

PAGE = (ROOT / "docs/architecture.md").read_text()
PACKAGES = ("crane_x7_vla_rl", "crane_x7_remote")
FILES = sorted(set(re.findall(r"[\w/]+\.py\b", PAGE)))
OTHERS = sorted([ROOT / "CONTRIBUTING.md", *ROOT.glob("README*.md"), *ROOT.glob("docs/*.md")])
OTHERS.remove(ROOT / "docs/log.md")  # names files as they were
FOREIGN = {
    "lerobot/scripts/train.py",
    # of openpi, in docs/openpi.md
    "scripts/compute_norm_stats.py",
    "scripts/serve_policy.py",
    "scripts/train.py",
    "src/openpi/policies/crane_x7_policy.py",
    "src/openpi/training/config.py",
    # of the documents that docs/older-names.md translates
    "/workspace/vla/test_crane_x7_loader.py",
    "lerobot/configs/train.py",
    "local/verda_lerobot_manager.py",
    "remote/train_lerobot_entry.py",
}


def rooms(package: str) -> list[str]:
    """Return the folders of a package that hold modules."""
    home = ROOT / package
    return sorted({str(path.parent.relative_to(home)) for path in home.rglob("*.py")} - {"."})


def exists(name: str) -> bool:
    places = [ROOT / name, *(ROOT / package / name for package in PACKAGES)]
    return any(place.is_file() for place in places)


@pytest.mark.parametrize("name", FILES)
def test_every_file_that_the_map_names_exists(name: str) -> None:
    assert exists(name), f"docs/architecture.md names {name}"


@pytest.mark.parametrize("page", OTHERS, ids=lambda page: page.name)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"[\w/]+/\w+\.py\b", page.read_text())) - FOREIGN
    assert [name for name in sorted(named) if not exists(name)] == []


def test_the_map_names_files() -> None:
    assert len(FILES) > 30


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_is_on_the_map(package: str) -> None:
    found = rooms(package)
    assert len(found) > 5
    missing = [room for room in found if f"{room.rsplit('/', 1)[-1]}/" not in PAGE]
    assert not missing, f"docs/architecture.md says nothing of {missing}"
