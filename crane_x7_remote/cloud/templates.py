"""Templates of the image for Vast.ai's and Runpod's web pages: Settings → bodies of their APIs.

This file lists the variables that a template offers; their defaults and meanings come from
Settings, so a template cannot offer a variable that the program does not read. Vast: the body of
POST /api/v0/template/. Runpod: the body of POST /v1/templates.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final, NoReturn

from crane_x7_remote.settings import Settings, secret_variables

PLACEHOLDER_IMAGE = "YOUR_NAME/crane-x7-remote"
VOLUME = "/workspace/vla-rl/outputs"
"""Folder of checkpoints, logs and host keys; a volume is mounted there."""


@dataclass(frozen=True)
class Template:
    """One use of the image on a rented machine."""

    name: str
    about: str
    command: tuple[str, ...]
    """Role and arguments for the image's entrypoint; empty: chosen from the variables."""
    variables: tuple[str, ...]
    """Fields of Settings that the template shows."""
    values: dict[str, str]
    """Values that differ from the defaults of Settings."""
    disk_gb: int
    volume_gb: int
    target: str = ""
    """Target of docker/Dockerfile, which ends the image's tag; "": the last one."""


CONNECTION = ("ts_authkey", "ts_hostname", "ssh_public_key", "ssh_port")
TEMPLATES = (
    Template(
        name="crane-x7-infer",
        about="Drives a CRANE-X7 from this GPU, through the guard beside the robot: ROSBRIDGE_HOST"
        " and ROSBRIDGE_PORT are the guard's address, ROSBRIDGE_TOKEN is its GUARD_TOKEN.",
        command=("infer",),
        variables=(
            *CONNECTION,
            *("rosbridge_host", "rosbridge_port", "peer_wait_timeout"),
            *("vla_model_path", "vla_task_instruction", "vla_device", "vla_inference_rate"),
            *("policy_server", "policy_api_key", "policy_io"),
            *("vla_unnorm_key", "hf_token", "rosbridge_token"),
        ),
        values={
            "ts_hostname": "crane-x7-inference",
            "rosbridge_port": "9091",
            "vla_inference_rate": "",  # so that the checkpoint's own rate is used
        },
        disk_gb=60,
        volume_gb=40,
    ),
    Template(
        name="crane-x7-train",
        about="Waits for ssh -X vla@host; train there, outputs go to the volume and to W&B. To"
        " train at once, and to resume after a restart, set the command to: train --pretrained"
        " MODEL --resume auto",
        command=("sshd",),
        variables=(*CONNECTION, "hf_token", "wandb_api_key"),
        values={"ts_hostname": "crane-x7-vla-rl"},
        disk_gb=80,
        volume_gb=200,
    ),
    Template(
        name="crane-x7-lerobot",
        about="Waits for ssh vla@host; train ACT, SmolVLA or pi0 there with LeRobot:"
        " crane-x7-vla-rl lerobot --config train.remote.yaml. Its image is the target lerobot of"
        " docker/Dockerfile.",
        command=("sshd",),
        variables=(*CONNECTION, "hf_token", "wandb_api_key"),
        values={"ts_hostname": "crane-x7-lerobot"},
        disk_gb=100,
        volume_gb=200,
        target="lerobot",
    ),
)
BY_NAME: Final = {each.name.removeprefix("crane-x7-"): each for each in TEMPLATES}


def vast(template: Template, image: str, tag: str) -> dict[str, Any]:
    """Return Vast's body. Launch mode `args` keeps the image's entrypoint."""
    flags = [f"-e {name}={shlex.quote(value)}" for name, value in plain(template).items()]
    return {
        "name": template.name,
        "image": image,
        "tag": tag_of(template, tag),
        "desc": template.about,
        "readme": readme(template, "Secrets: put them into your account's environment variables."),
        "env": " ".join(["-p 22:22", *flags]),
        "runtype": "args",
        "args_str": shlex.join(template.command),
        "onstart": "",
        "use_ssh": False,
        "ssh_direct": False,
        "recommended_disk_space": template.disk_gb,
        "private": True,
    }


def runpod(template: Template, image: str, tag: str) -> dict[str, Any]:
    """Return Runpod's body. Secrets are references into the account's own store."""
    secrets = {
        name.upper(): f"{{{{ RUNPOD_SECRET_{name.upper()} }}}}"
        for name in template.variables
        if is_secret(name)
    }
    return {
        "name": template.name,
        "imageName": f"{image}:{tag_of(template, tag)}",
        "category": "NVIDIA",
        "isPublic": False,
        "isServerless": False,
        "containerDiskInGb": template.disk_gb,
        "volumeInGb": template.volume_gb,
        "volumeMountPath": VOLUME,
        "ports": ["22/tcp"],
        "env": plain(template) | secrets,
        "dockerEntrypoint": [],
        "dockerStartCmd": list(template.command),
        "readme": readme(template, "Secrets: create them under the names that the variables show."),
    }


def tag_of(template: Template, tag: str) -> str:
    """Return the tag of the template's image: 0.1.0, or 0.1.0-lerobot."""
    return f"{tag}-{template.target}" if template.target else tag


def plain(template: Template) -> dict[str, str]:
    """Return variable → value for all variables but secrets; empty means unset, and shows a
    field."""
    shown = {}
    for name in template.variables:
        if not is_secret(name):
            default = Settings.model_fields[name].default
            text = f"{default:g}" if isinstance(default, float) else str(default or "")
            shown[name.upper()] = template.values.get(name, text)
    return shown


def is_secret(name: str) -> bool:
    """Whether a field of Settings is a secret."""
    return name.upper() in secret_variables()


def readme(template: Template, about_secrets: str) -> str:
    """Return the text that the provider's page shows."""
    lines = [template.about, "", about_secrets, "", "| variable | meaning |", "|---|---|"]
    lines += [
        f"| `{name.upper()}` | {Settings.model_fields[name].description} |"
        for name in template.variables
    ]
    return "\n".join(lines)


PROVIDERS: Final = {"vast": vast, "runpod": runpod}


def text(provider: str, name: str, image: str, tag: str) -> str:
    """Return one template as JSON; `name` is infer, train or lerobot."""
    body = PROVIDERS[provider](BY_NAME[name], image, tag)
    return json.dumps(body, indent=2, ensure_ascii=False) + "\n"


def render(image: str, tag: str) -> dict[str, str]:
    """Return file name → content of all templates."""
    return {
        f"{provider}-{template.name}.json": text(provider, name, image, tag)
        for name, template in BY_NAME.items()
        for provider in PROVIDERS
    }


def split_tag(image: str) -> tuple[str, str]:
    """Return name and tag of an image; a registry's port is part of the name."""
    folder, slash, last = image.rpartition("/")
    name, _, tag = last.partition(":")
    return f"{folder}{slash}{name}", tag


class Show(argparse.Action):
    """The flag `--template PROVIDER`: print what a click on its page would send, and end."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> NoReturn:
        """Print the template for the flags before this one: --image NAME:TAG, --job."""
        del option_string
        image, tag = split_tag(namespace.image or PLACEHOLDER_IMAGE)
        name = "lerobot" if namespace.job == "lerobot" else "train"
        if tag:
            body = PROVIDERS[str(values)](BY_NAME[name], image, tag)
            body |= {"tag": tag} if "tag" in body else {"imageName": f"{image}:{tag}"}
            print(json.dumps(body, indent=2, ensure_ascii=False))
        else:
            print(text(str(values), name, image, version("crane-x7-remote")), end="")
        parser.exit()
