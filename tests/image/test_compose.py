"""docker/compose.yaml names what is there: settings, roles, folders of the image."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from containers import ROOT

from crane_x7_remote.boot.role import ROLES
from crane_x7_remote.cli import COMMANDS
from crane_x7_remote.settings import Settings

PLACES = [ROOT / "docker" / "compose.yaml", ROOT / "docker" / "robot" / "compose.yaml"]
COMPOSE: dict[str, Any] = {"services": {}}
for place in PLACES:  # docker/compose.yaml includes the other
    COMPOSE["services"] |= yaml.safe_load(place.read_text())["services"]
ROBOT = "rosbridge-robot"
"""The service without a program of this project: its variables and its command are ROS's."""
FOREIGN = {"WANDB_API_KEY"}
"""Read by the tools that the variable is for, not by us."""


@pytest.mark.parametrize("name", sorted(set(COMPOSE["services"]) - {ROBOT}))
def test_every_variable_of_a_service_is_a_setting(name: str) -> None:
    environment = COMPOSE["services"][name].get("environment", {})
    known = {field.upper() for field in Settings.model_fields} | FOREIGN
    assert set(environment) <= known


@pytest.mark.parametrize(
    "profile", ["infer", "train", "local", "guard", "rosbridge", "rosbridge-sim"]
)
def test_profile_starts_something(profile: str) -> None:
    assert [s for s in COMPOSE["services"].values() if profile in s["profiles"]]


def test_gpu_goes_to_the_services_that_need_it() -> None:
    with_gpu = {name for name, service in COMPOSE["services"].items() if "deploy" in service}
    assert with_gpu == {"infer", "train"}


def test_nothing_but_ssh_is_published() -> None:
    published = {
        name: service["ports"]
        for name, service in COMPOSE["services"].items()
        if "ports" in service
    }
    assert published == {"train": ["${SSH_OUTSIDE_PORT:-2222}:22"]}


def test_every_command_of_a_service_is_one_of_ours() -> None:
    for name, service in COMPOSE["services"].items():
        if name in (ROBOT, "rosbridge-guard"):  # see test_robot_side.py
            continue
        words = service.get("command") or service["entrypoint"][3:]
        assert words[0] in COMMANDS or words[0] in ROLES


def test_secrets_are_passed_through_and_never_written_down() -> None:
    for service in COMPOSE["services"].values():
        environment: dict[str, Any] = service.get("environment", {})
        for variable, value in environment.items():
            if re.search("KEY|TOKEN", variable):
                assert value is None
