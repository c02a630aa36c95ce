"""`cloud train | resume | resume_local`: flags, `.env`, YAML → a checked plan, and its run.

Cheap checks come first, and all of them before anything is rented: `.env`, the YAML by the trainer
itself, the ssh key, the Hub's token and names, the provider's key.
"""

from __future__ import annotations

import argparse
import logging
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

from crane_x7_remote import settings
from crane_x7_remote.cloud import accounts, attempts, env_file, rescue, ssh_key, templates
from crane_x7_remote.cloud import job as jobs
from crane_x7_remote.cloud.hub_state import HubState
from crane_x7_remote.cloud.job import Job
from crane_x7_remote.cloud.plan import SSH_FOLDER, Plan
from crane_x7_remote.cloud.provider import Provider
from crane_x7_remote.cloud.reconcile import reconcile
from crane_x7_remote.cloud.rental import left_line
from crane_x7_remote.cloud.session import REMOTE_DIR, checked
from crane_x7_remote.cloud.types import Budget, Volume, Wanted
from crane_x7_remote.errors import CloudError, CloudLeftError, SettingsError
from crane_x7_vla_rl.fields import argument_type, within

logger = logging.getLogger(__name__)

MODES: Final[Mapping[str, str]] = {
    "train": "train",
    "resume": "resume_hub",
    "resume_local": "resume_local",
}
"""Sub-command → mode of setup_env.sh."""
IMAGES: Final = {"verda": "ubuntu-24.04-cuda-12.8-open-docker"}
"""Provider → image if none is named; the others need one of a registry."""
OURS: Final = "crane-x7-remote"
"""Part of the name of this project's image, whose user is vla."""
RUN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
HERE_MB: Final = 500
"""Free room that a run needs here at the very least."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the three sub-commands."""
    add = parser.add_argument
    positive = argument_type(Annotated[float, within(0.001, 1_000_000)])
    add("--gpu-model", required=True, metavar="NAME", help="exact name, such as H100 or L40S")
    add("--gpus-per-instance", type=int, default=1, metavar="N", help="GPUs (%(default)s)")
    add("--env-file", type=Path, default=Path(".env"), metavar="FILE",
        help="secrets; only what a training needs goes up (%(default)s)")  # fmt: skip
    add("--train-config", "--config", type=Path, metavar="FILE",
        help="YAML (LEROBOT_TRAIN_CONFIG, else configs/train.remote.yaml)")  # fmt: skip
    add("--run-id", metavar="NAME", help="folder below runs/; default: from the time")
    add("--checkpoint-repo-id", metavar="owner/name",
        help="Hub repository of the checkpoints; checkpoint.repo_id of the YAML")  # fmt: skip
    add("--os-volume-id", metavar="ID", help="start from this kept disk; see resume_local")
    add("--image", metavar="NAME", help=f"default: {IMAGES['verda']} (verda)")
    add("--provider", choices=sorted(accounts.KEYS), default="verda", help="(%(default)s)")
    add("--location", metavar="PLACE", help="such as FIN-03; default: the cheapest")
    add("--max-price", type=positive, metavar="USD", help="per hour, of the whole machine")
    add("--max-hours", type=positive, metavar="H", help="the run ends after this time, saved")
    add("--max-cost", type=positive, metavar="USD", help="the run ends at this cost, saved")
    add("--auto-resume", type=int, default=0, metavar="N",
        help="machines to rent after evictions (%(default)s)")  # fmt: skip
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--spot", action="store_true", default=True, help="(the default)")
    kind.add_argument("--on-demand", dest="spot", action="store_false",
                      help="a machine that is not taken away")  # fmt: skip
    add("--job", choices=jobs.KINDS, default=jobs.LEROBOT,
        help="lerobot, or this project's own trainers (%(default)s)")  # fmt: skip
    add("words", nargs="*", metavar="WORD",
        help="for --job sft and train: their flags, after --")  # fmt: skip
    add("--disk-gb", type=int, default=200, metavar="GB", help="disk (%(default)s)")
    add("--ssh-user", metavar="NAME",
        help="who logs in; default: root, and vla with this project's image")  # fmt: skip
    add("--remote-dir", metavar="PATH",
        help=f"working folder on the machine ({REMOTE_DIR}, or the user's home)")  # fmt: skip
    add("--template", action=templates.Show, choices=sorted(templates.PROVIDERS),
        help="print the template that its web page needs for this, and exit; after --image and"
        " --job")  # fmt: skip
    add("--runs-dir", type=Path, default=Path("runs"), metavar="FOLDER",
        help="where results come home to (%(default)s)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the training; returns 0 once its outputs are here and nothing is rented.

    Raises SettingsError, CloudError.
    """
    mode = MODES[args.action]
    values = env_file.merged(env_file.read(args.env_file), settings.inherited())
    configured = settings.load(environ=values)
    accounts.provider(configured, args.provider).close()  # raises without its key
    plan = plan_of(args, mode, values)
    plan.hub.check(plan.job, resume=mode == "resume_hub")
    ledger = accounts.ledger(configured)
    with accounts.opened(configured) as providers:
        provider = providers[args.provider]
        provider.check_key()
        left = reconcile(ledger, providers, plan.timing, rescue.Rescue(ledger, plan.pace)).left
        if left:
            raise CloudLeftError("\n".join(map(left_line, left)))
        _check_folder(plan)  # outputs of an interrupted run may have come home just now
        if mode == "resume_local":
            plan = replace(plan, os_volume_id=_volume(provider, args.os_volume_id))
        attempts.run(plan, provider, ledger)
    return 0


def plan_of(args: argparse.Namespace, mode: str, values: Mapping[str, str]) -> Plan:
    """Return the plan that the flags describe, checked as far as this computer can."""
    wanted, image, run_id = _wanted(args), _image(args), _run_id(args.run_id)
    user = args.ssh_user or ("vla" if OURS in image else "root")
    home = REMOTE_DIR if user == "root" else f"/home/{user}/lerobot_run"
    remote_dir = checked(args.remote_dir or home)
    folder = args.runs_dir / run_id
    _check_room(folder)
    plan = Plan(
        run_id=run_id,
        job=Job(),
        mode=mode,
        wanted=wanted,
        image=image,
        key=ssh_key.choose(values, folder / SSH_FOLDER),
        folder=folder,
        secrets=env_file.for_machine(values),
        hub=HubState(env_file.hub_token(values), values.get("HF_ENDPOINT")),
        budget=Budget(args.max_hours, args.max_cost),
        remote_dir=remote_dir,
        ssh_user=user,
        auto_resume=max(args.auto_resume, 0),
        os_volume_id=args.os_volume_id,
        command=("sshd",) if OURS in image else (),
    )
    _check_folder(plan)
    return replace(plan, job=_job(args, values))  # last: the trainer itself reads its file


def _check_folder(plan: Plan) -> None:
    """Raise SettingsError where a new run would overwrite the outputs of another."""
    if plan.mode == "train" and plan.outputs.exists() and any(plan.outputs.iterdir()):
        raise SettingsError(
            f"--run-id {plan.run_id}: {plan.outputs} holds outputs of an earlier run; choose"
            " another --run-id, or continue that run with `cloud resume` or `cloud resume_local`"
        )


def _job(args: argparse.Namespace, values: Mapping[str, str]) -> Job:
    if args.job == jobs.LEROBOT:
        if args.words:
            raise SettingsError(
                f"{args.words[0]!r}: words are for --job sft and --job train; LeRobot's options are"
                " in the YAML"
            )
        return jobs.read_lerobot(args.train_config, args.checkpoint_repo_id, values)
    if args.action == "resume":
        raise SettingsError(
            f"cloud resume: --job {args.job} resumes from a disk alone: `cloud resume_local`"
        )
    return jobs.read_own(args.job, args.words, values)


def _run_id(given: str | None) -> str:
    run_id = given or time.strftime("run_%Y%m%d_%H%M%S")
    if not RUN_ID.fullmatch(run_id):
        raise SettingsError(
            f"--run-id {run_id!r}: expected up to 64 letters, digits, dots, dashes and _, such as"
            " first_run"
        )
    return run_id


def _wanted(args: argparse.Namespace) -> Wanted:
    if args.gpus_per_instance < 1:
        raise SettingsError(f"--gpus-per-instance {args.gpus_per_instance}: expected 1 or more")
    return Wanted(
        args.gpu_model, args.gpus_per_instance, args.spot, args.location, args.max_price,
        args.disk_gb,
    )  # fmt: skip


def _image(args: argparse.Namespace) -> str:
    image = args.image or IMAGES.get(args.provider)
    if image is None:
        raise SettingsError(
            f"--image: {args.provider} needs one; this project's image by its name in a registry,"
            " or any with CUDA's driver and sshd; see docs/cloud.md"
        )
    return str(image)


def _check_room(folder: Path) -> None:
    place = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    free_mb = shutil.disk_usage(place).free / 1e6
    if free_mb < HERE_MB:
        raise CloudError(
            f"{place}: only {free_mb:.0f} MB are free here, and outputs come home to it; make room,"
            " or choose another --runs-dir; nothing was rented"
        )


def _volume(provider: Provider, given: str | None) -> str:
    """Return the kept disk to start from, chosen from a table if none is named."""
    if given is not None:
        return attempts.find_volume(provider, given).volume_id
    found = [each for each in provider.volumes() if attempts.unusable(each) is None]
    if not found:
        raise CloudError(
            f"resume_local: {provider.name} has no detached OS disk; `crane-x7-remote cloud list`"
            " shows all, and `cloud resume` resumes from the Hub"
        )
    for number, volume in enumerate(found, 1):
        print(f"{number:3d}  {_row(volume)}")
    try:
        answer = input(f"disk to start from (1 to {len(found)}): ").strip()
    except EOFError:
        answer = ""
    if not answer.isdecimal() or not 1 <= int(answer) <= len(found):
        raise CloudError(
            f"resume_local: {answer!r} is not a number of the table; nothing was rented; or give"
            " --os-volume-id"
        )
    return found[int(answer) - 1].volume_id


def _row(volume: Volume) -> str:
    price = "price unknown" if volume.price_per_hour is None else f"${volume.price_per_hour:.4f}/h"
    return f"{volume.volume_id}  {volume.location}  {volume.size_gb} GB  {price}  {volume.name}"
