"""docker/compose.yaml names what is there: settings, roles, folders of the image."""

from __future__ import annotations

import argparse
import re
from typing import Any

import pytest
import yaml
from containers import ROOT

from crane_x7_remote.boot.role import ROLES
from crane_x7_remote.cli import COMMANDS
from crane_x7_remote.settings import Settings
from crane_x7_remote.sim_robot import command as sim_robot

COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
FOREIGN = {"WANDB_API_KEY"}
"""Read by the tools that the variable is for, not by us."""


@pytest.mark.parametrize("name", sorted(COMPOSE["services"]))
def test_every_variable_of_a_service_is_a_setting(name: str) -> None:
    environment = COMPOSE["services"][name].get("environment", {})
    known = {field.upper() for field in Settings.model_fields} | FOREIGN
    assert set(environment) <= known


@pytest.mark.parametrize("profile", ["infer", "train", "local", "guard", "rosbridge-sim"])
def test_profile_starts_something(profile: str) -> None:
    assert [s for s in COMPOSE["services"].values() if profile in s["profiles"]]


def test_gpu_goes_to_the_services_that_need_it() -> None:
    with_gpu = {name for name, service in COMPOSE["services"].items() if "deploy" in service}
    assert with_gpu == {"infer", "train"}


def test_nothing_but_ssh_and_a_simulated_robot_is_published() -> None:
    published = {
        name: service["ports"]
        for name, service in COMPOSE["services"].items()
        if "ports" in service
    }
    assert published == {
        "train": ["${SSH_OUTSIDE_PORT:-2222}:22"],
        "rosbridge-sim": ["${ROSBRIDGE_PORT:-9090}:9090"],
    }


def test_profile_rosbridge_sim_is_the_robot_alone_and_listens_outside_its_container() -> None:
    services = [s for s in COMPOSE["services"].values() if "rosbridge-sim" in s["profiles"]]
    (robot,) = services
    _, _, program, command, *flags = robot["entrypoint"]
    assert (program, command) == ("crane-x7-remote", "sim-robot")
    parser = argparse.ArgumentParser()
    sim_robot.add_arguments(parser)
    args = parser.parse_args(flags)
    assert (args.host, args.port) == ("0.0.0.0", 9090)


def test_every_command_of_a_service_is_one_of_ours() -> None:
    for service in COMPOSE["services"].values():
        words = service.get("command") or service["entrypoint"][3:]
        assert words[0] in COMMANDS or words[0] in ROLES


def test_secrets_are_passed_through_and_never_written_down() -> None:
    for service in COMPOSE["services"].values():
        environment: dict[str, Any] = service.get("environment", {})
        for variable, value in environment.items():
            if re.search("KEY|TOKEN", variable):
                assert value is None
