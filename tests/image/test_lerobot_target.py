"""The image's target `lerobot`, as far as its files tell; building it takes 6 GB."""

from __future__ import annotations

import re

from places import ROOT

from crane_x7_vla_rl import lerobot_env

DOCKERFILE = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
SETUP = (ROOT / "scripts/setup-lerobot").read_text(encoding="utf-8")
STAGES = re.split(r"(?m)^FROM ", re.sub(r"(?m)^#.*\n", "", DOCKERFILE))


def test_a_build_without_a_target_is_without_lerobot() -> None:
    assert STAGES[-1].strip() == "image"
    # The package carries LeRobot's constraints to rented machines; nothing is installed by them.
    stages = [stage.replace("constraints-lerobot.txt", "") for stage in STAGES[2:-2]]
    assert not any("lerobot" in stage for stage in stages)


def test_the_target_has_lerobot_where_it_is_looked_for() -> None:
    (stage,) = (stage for stage in STAGES if stage.startswith("image AS lerobot"))
    assert f"-m venv {lerobot_env.IN_IMAGE} " in stage
    needs = re.search(r"(?m)^needs=\((.*)\)$", SETUP)
    assert needs is not None
    assert needs[1] in stage


def test_image_and_setup_install_the_release_that_the_project_expects() -> None:
    (named,) = re.findall(r"(?m)^lerobot='lerobot\[.*\]==(.*)'$", SETUP)
    pinned = (ROOT / "constraints-lerobot.txt").read_text(encoding="utf-8").splitlines()
    assert named == lerobot_env.VERSION
    assert f"lerobot=={named}" in pinned


def test_what_the_target_copies_is_sent_to_the_build() -> None:
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {"!constraints-lerobot.txt", "!scripts/setup-lerobot"} <= set(sent)


def test_constraints_name_no_package_of_cuda() -> None:
    """With them, a CPU build of the same torch would not fit."""
    pinned = (ROOT / "constraints-lerobot.txt").read_text(encoding="utf-8")
    assert not re.search(r"(?m)^(nvidia|cuda|triton)", pinned)
