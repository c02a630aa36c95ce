"""docker/compose.yaml names what is there: settings, roles, folders of the image."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from containers import ROOT

from crane_x7_remote.settings import Settings

COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
FOREIGN = {"WANDB_API_KEY"}
"""Read by the tools that the variable is for, not by us."""


@pytest.mark.parametrize("name", sorted(COMPOSE["services"]))
def test_every_variable_of_a_service_is_a_setting(name: str) -> None:
    environment = COMPOSE["services"][name].get("environment", {})
    known = {field.upper() for field in Settings.model_fields} | FOREIGN
    assert set(environment) <= known


@pytest.mark.parametrize("profile", ["infer", "train", "local"])
def test_profile_starts_something(profile: str) -> None:
    assert [s for s in COMPOSE["services"].values() if profile in s["profiles"]]


def test_gpu_goes_to_the_services_that_need_it() -> None:
    with_gpu = {name for name, service in COMPOSE["services"].items() if "deploy" in service}
    assert with_gpu == {"infer", "train"}


def test_nothing_but_ssh_is_published() -> None:
    published = [p for s in COMPOSE["services"].values() for p in s.get("ports", [])]
    assert published == ["${SSH_OUTSIDE_PORT:-2222}:22"]


def test_secrets_are_passed_through_and_never_written_down() -> None:
    for service in COMPOSE["services"].values():
        environment: dict[str, Any] = service.get("environment", {})
        for variable, value in environment.items():
            if re.search("KEY|TOKEN", variable):
                assert value is None
