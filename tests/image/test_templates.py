"""Templates of the providers: what they promise is what Settings read."""

from __future__ import annotations

import itertools
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

from crane_x7_remote import settings

FOLDER = ROOT / "configs" / "templates"
FILES = sorted(path.name for path in FOLDER.glob("*.json"))
SCRIPT = ROOT / "scripts" / "render-templates"


def render(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False
    )


def variables(name: str) -> dict[str, str]:
    """The variables that a template sets, whichever format it has."""
    body: dict[str, Any] = json.loads((FOLDER / name).read_text())
    if isinstance(body["env"], dict):
        return body["env"]
    words = shlex.split(body["env"])
    pairs = [value for flag, value in itertools.pairwise(words) if flag == "-e"]
    return dict(pair.split("=", 1) for pair in pairs)


def test_both_providers_have_every_role() -> None:
    assert [
        f"{provider}-crane-x7-{role}.json"
        for provider in ("runpod", "vast")
        for role in ("infer", "lerobot", "train")
    ] == FILES


def test_templates_are_what_settings_say() -> None:
    result = render("--check")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", FILES)
def test_settings_take_what_a_template_sets(name: str) -> None:
    secrets = settings.secret_variables()
    plain = {key: value for key, value in variables(name).items() if key not in secrets}
    loaded = settings.load(environ=plain)
    assert loaded.ts_hostname in {"crane-x7-inference", "crane-x7-vla-rl", "crane-x7-lerobot"}
    assert loaded.ssh_port == 22


@pytest.mark.parametrize("name", [name for name in FILES if "infer" in name])
def test_the_loops_template_leaves_the_rate_to_the_checkpoint(name: str) -> None:
    assert variables(name)["VLA_INFERENCE_RATE"] == ""
    assert variables(name)["VLA_DEVICE"] in ("auto", "cuda")


@pytest.mark.parametrize("name", [name for name in FILES if "infer" in name])
def test_the_loops_template_goes_through_the_guard(name: str) -> None:
    assert (variables(name)["ROSBRIDGE_HOST"], variables(name)["ROSBRIDGE_PORT"]) == (
        "crane-x7-local",
        "9091",
    )
    assert "the guard's address" in (FOLDER / name).read_text()


@pytest.mark.parametrize("name", [name for name in FILES if "lerobot" in name])
def test_the_template_of_lerobot_has_the_image_of_its_target(name: str) -> None:
    body = json.loads((FOLDER / name).read_text())
    image = body["imageName"] if "imageName" in body else f"{body['image']}:{body['tag']}"
    assert image.endswith("-lerobot")
    assert " AS lerobot" in (ROOT / "docker" / "Dockerfile").read_text()


@pytest.mark.parametrize("name", FILES)
def test_no_template_holds_a_secret(name: str) -> None:
    for key in settings.secret_variables() & variables(name).keys():
        assert variables(name)[key] == f"{{{{ RUNPOD_SECRET_{key} }}}}"


@pytest.mark.parametrize("name", FILES)
def test_the_images_entrypoint_is_kept(name: str) -> None:
    body = json.loads((FOLDER / name).read_text())
    role = "infer" if "infer" in name else "sshd"
    if name.startswith("vast"):
        assert (body["runtype"], body["args_str"], body["onstart"]) == ("args", role, "")
        assert "-p 22:22" in body["env"]
    else:
        assert (body["dockerEntrypoint"], body["dockerStartCmd"]) == ([], [role])
        assert body["ports"] == ["22/tcp"]


def test_a_changed_default_is_noticed(tmp_path: Path) -> None:
    """--check can fail: a file that says something else is named."""
    copy = tmp_path / "scripts" / "render-templates"
    copy.parent.mkdir()
    copy.write_text(SCRIPT.read_text())
    folder = tmp_path / "configs" / "templates"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text((FOLDER / name).read_text())
    (folder / "vast-crane-x7-infer.json").write_text("{}")
    command = [sys.executable, str(copy), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stdout.startswith("vast-crane-x7-infer.json:")
