"""`cloud export --sky FILE | --dstack FILE`: a training's flags and YAML → a task of theirs.

For those who use one of them already. Neither can resume from a kept disk, nor does it delete until
the provider lists nothing. The file names the variables of secrets, never their values, and starts
this project's image, so that nothing is installed on the machine.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Annotated, Any, Final

from crane_x7_remote import settings as settings_module
from crane_x7_remote.cloud import accounts, env_file
from crane_x7_remote.cloud import job as jobs
from crane_x7_remote.cloud.job import Job
from crane_x7_remote.errors import ExitCode, OutputError, SettingsError
from crane_x7_vla_rl.fields import argument_type, within
from crane_x7_vla_rl.file_errors import why

CONFIG_THERE: Final = "/workspace/train.remote.yaml"
SKY_CLOUDS: Final = {"verda": "verda", "vast": "vast", "runpod": "runpod"}
DSTACK_BACKENDS: Final = {"verda": "verda", "vast": "vastai", "runpod": "runpod"}
SECRETS: Final = ("HF_TOKEN", "WANDB_API_KEY")
"""Given at the start: `sky jobs launch --secret HF_TOKEN`; dstack reads them from its shell."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags, named as those of `cloud train`."""
    add = parser.add_argument
    positive = argument_type(Annotated[float, within(0.001, 1_000_000)])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--sky", type=Path, metavar="FILE", help="task of SkyPilot to write")
    which.add_argument("--dstack", type=Path, metavar="FILE", help="task of dstack to write")
    add("--gpu-model", required=True, metavar="NAME", help="exact name, such as H100 or L40S")
    add("--gpus-per-instance", type=int, default=1, metavar="N", help="GPUs (%(default)s)")
    add("--image", required=True, metavar="NAME",
        help="this project's image in a registry, built from the target lerobot")  # fmt: skip
    add("--train-config", "--config", type=Path, metavar="FILE",
        help="YAML of the training (configs/train.remote.yaml)")  # fmt: skip
    add("--run-id", default="crane-x7-training", metavar="NAME", help="name (%(default)s)")
    add("--checkpoint-repo-id", metavar="owner/name",
        help="Hub repository of the checkpoints; checkpoint.repo_id of the YAML")  # fmt: skip
    add("--provider", choices=sorted(accounts.KEYS), help="default: any that the tool has")
    add("--location", metavar="PLACE", help="region")
    add("--max-price", type=positive, metavar="USD", help="per hour, of the whole machine")
    add("--max-hours", type=positive, metavar="H", help="dstack ends the task after this time")
    add("--disk-gb", type=int, default=200, metavar="GB", help="disk (%(default)s)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--spot", action="store_true", default=True, help="(the default)")
    kind.add_argument("--on-demand", dest="spot", action="store_false",
                      help="a machine that is not taken away")  # fmt: skip
    accounts.add_env_file(parser)


def run(args: argparse.Namespace) -> int:
    """Check the training's YAML and write the file. Raises SettingsError, OutputError."""
    path = args.sky or args.dstack
    file = {} if args.env_file is None else env_file.read(args.env_file)
    values = env_file.merged(file, settings_module.inherited())
    config = args.train_config or Path(f"configs/{jobs.CONFIG}")
    job = jobs.read_lerobot(config, args.checkpoint_repo_id, values)
    if args.gpus_per_instance < 1:
        raise SettingsError(f"--gpus-per-instance {args.gpus_per_instance}: expected 1 or more")
    make = sky if args.sky else dstack
    try:
        path.write_text(_as_yaml(make(args, job, config), args), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {why(error)}") from error
    start = (
        f"sky jobs launch --secret HF_TOKEN --secret WANDB_API_KEY {path}"
        if args.sky
        else f"dstack apply -f {path}"
    )
    print(f"wrote {path}; start it with: {start}")
    if args.spot and not job.survives_eviction:
        print(
            "an eviction loses the whole run: set checkpoint.repo_id and"
            " checkpoint.upload_every_save in the YAML"
        )
    print("it is that tool's from then on: `cloud list` shows its machine as not ours")
    return ExitCode.OK


def sky(args: argparse.Namespace, job: Job, config: Path) -> dict[str, Any]:
    """Return a managed job of SkyPilot 0.14."""
    resources: dict[str, Any] = {
        "accelerators": f"{args.gpu_model}:{args.gpus_per_instance}",
        "image_id": f"docker:{args.image}",
        "use_spot": args.spot,
        "disk_size": args.disk_gb,
    }
    if args.provider:
        place = f"/{args.location}" if args.location else ""
        resources["infra"] = f"{SKY_CLOUDS[args.provider]}{place}"
    elif args.location:
        raise SettingsError("--location: --sky needs --provider, too, for a place there")
    if args.max_price is not None:
        resources["max_hourly_cost"] = args.max_price
    return {
        "name": _name(args.run_id),
        "resources": resources,
        "secrets": dict.fromkeys(SECRETS),
        "file_mounts": {CONFIG_THERE: str(config.absolute())},
        "run": " ".join(_command(job)),
    }


def dstack(args: argparse.Namespace, job: Job, config: Path) -> dict[str, Any]:
    """Return a task of dstack 0.22."""
    task: dict[str, Any] = {
        "type": "task",
        "name": _name(args.run_id),
        "image": args.image,
        "env": list(SECRETS),
        "files": [f"{config.absolute()}:{CONFIG_THERE}"],
        "commands": [" ".join(_command(job))],
        "resources": {
            "gpu": {"name": args.gpu_model, "count": args.gpus_per_instance},
            "disk": {"size": f"{args.disk_gb}GB"},
        },
        "spot_policy": "spot" if args.spot else "on-demand",
    }
    if args.spot:
        task["retry"] = {"on_events": ["interruption"], "duration": "1d"}
    if args.provider:
        task["backends"] = [DSTACK_BACKENDS[args.provider]]
    if args.location:
        task["regions"] = [args.location]
    if args.max_price is not None:
        task["max_price"] = args.max_price
    if args.max_hours is not None:
        task["max_duration"] = f"{max(round(args.max_hours * 60), 1)}m"
    return task


def _command(job: Job) -> list[str]:
    """Return the training's command; the same line starts and resumes it."""
    words = ["crane-x7-vla-rl", "lerobot", "--config", CONFIG_THERE, "--resume", "auto"]
    return words if job.repo_id is None else [*words, "--checkpoint-repo-id", job.repo_id]


def _name(run_id: str) -> str:
    """Return a name that both accept: letters, digits and dashes, a letter first."""
    words = re.sub("[^a-z0-9]+", "-", run_id.lower()).strip("-")
    return (words if words[:1].isalpha() else f"run-{words}")[:40].rstrip("-")


def _as_yaml(task: dict[str, Any], args: argparse.Namespace) -> str:
    import yaml

    tool = "SkyPilot" if args.sky else "dstack"
    head = (
        f"# Written by crane-x7-remote cloud export, for {tool}. Secrets are given at the start.\n"
    )
    return head + str(yaml.safe_dump(task, sort_keys=False, allow_unicode=True, width=100))
