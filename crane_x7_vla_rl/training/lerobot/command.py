"""`lerobot`: a policy that LeRobot knows, trained by LeRobot in its own environment.

`train.remote.yaml`, variables and LeRobot's own words (`--policy.type=act`) → a `Request`. The
words are printed before LeRobot starts; `--dry-run` ends there.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl.training import follow, settings
from crane_x7_vla_rl.training.config import loader
from crane_x7_vla_rl.training.config.loader import FLAGS, Layer
from crane_x7_vla_rl.training.errors import ConfigError
from crane_x7_vla_rl.training.lerobot import options as lerobot
from crane_x7_vla_rl.training.lerobot import request as requests

COMMON: Final = (
    "config", "override", "resume", "checkpoint_repo_id", "dry_run", "follow", "policy.type",
    "policy.path", "policy.device", "dataset.repo_id", "dataset.root", "steps", "batch_size",
    "output_dir", "save_freq", "log_freq", "wandb.enable",
)  # fmt: skip
"""See command_line."""
MODES: Final[Mapping[str, list[str]]] = {
    "train": [],
    "resume_hub": ["hub"],
    "resume_local": ["local"],
}
"""Older word of `--mode` → `--resume`."""
TO_KEYS: Final = {
    "output_dir": "job.output_dir",
    "job_name": "job.name",
    lerobot.RENAME: requests.RENAME,
}
"""LeRobot's option → key of the file, where it is not in its section `training`."""
PREFIX: Final = "lerobot:"
"""Of the parser's names of LeRobot's options."""
EXAMPLE: Final = "configs/train.remote.example.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add our flags, and one per option of LeRobot."""
    parser.add_argument(
        "--config", "--train-config", type=Path, metavar="FILE",
        help=f"train.remote.yaml, see {EXAMPLE}; also the variable {settings.LEROBOT_CONFIG}",
    )  # fmt: skip
    parser.add_argument(
        "--override", action="append", default=[], metavar="KEY=VALUE",
        help="set any key of the file, such as training.steps=2000; overrides LeRobot's words",
    )  # fmt: skip
    parser.add_argument(
        "--resume", nargs="+", default=[], metavar="WHERE",
        help="resume the most advanced complete checkpoint of: auto (this run here or on the Hub,"
        " else start), hub, local (any run below the output root), folders, owner/name",
    )  # fmt: skip
    parser.add_argument("--mode", choices=tuple(MODES), help="older words for --resume")
    parser.add_argument(
        "--config_path", metavar="FILE|FOLDER|owner/name",
        help="a train_config.json of LeRobot to start from; with --resume=true, to resume",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint-repo-id", metavar="owner/name",
        help="model repository on the Hub for checkpoints; checkpoint.repo_id of the file",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true", help="print LeRobot's words and end; trains nothing"
    )
    follow.add_argument(parser)
    group = parser.add_argument_group(
        "LeRobot's options", f"as of LeRobot {lerobot.table()['lerobot']}; its own help says more"
    )
    for name in [*lerobot.names(), "env.type", "env.task"]:
        if name != "resume":
            group.add_argument(
                f"--{name}", dest=f"{PREFIX}{name}", metavar="VALUE", default=argparse.SUPPRESS,
                help="an option of LeRobot",
            )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Train, or print what would be trained; returns 0.

    Raises TrainingError, DataError and PolicyLoadError.
    """
    if args.follow is not None:
        return follow.follow(args.follow)
    request, resume = read(args)
    from crane_x7_vla_rl.training.lerobot.start import go

    return go(request, requests.Wish(resume, args.dry_run))


def read(args: argparse.Namespace) -> tuple[requests.Request, list[str]]:
    """Return the request and where to resume; raises ConfigError."""
    file = args.config or settings.lerobot_config()
    layers = [] if file is None else [loader.read_file(file)]
    layers += settings.layers(keys=settings.LEROBOT_VARIABLES)
    layers.append(Layer(FLAGS, _words(args)))
    layers.append(loader.overrides(args.override))
    resume = _resume(args)
    request = requests.build(layers)
    if not request.options and file is None and not resume and not args.config_path:
        raise ConfigError(
            f"nothing says what to train; give --config FILE (copy {EXAMPLE}), or LeRobot's words:"
            " --dataset.repo_id=owner/name --policy.type=act"
        )
    return request, resume


def _words(args: argparse.Namespace) -> dict[str, Any]:
    """Return the values of LeRobot's words by key of the file."""
    given = {
        name.removeprefix(PREFIX): value
        for name, value in vars(args).items()
        if name.startswith(PREFIX)
    }
    if args.config_path is not None and args.resume[:1] != ["true"]:
        given["config_path"] = args.config_path
    values = {
        TO_KEYS.get(name, name if "." in name else f"{requests.TRAINING}.{name}"): value
        for name, value in given.items()
    }
    if args.checkpoint_repo_id is not None:
        values["checkpoint.repo_id"] = args.checkpoint_repo_id
    return values


def _resume(args: argparse.Namespace) -> list[str]:
    wanted = list(args.resume)
    if wanted == ["false"]:
        wanted = []
    if wanted == ["true"]:  # LeRobot's word, with the checkpoint in --config_path
        if args.config_path is None:
            raise ConfigError(
                "--resume=true needs --config_path=…/pretrained_model; to resume this run if it has"
                " a checkpoint, type: --resume auto"
            )
        wanted = [args.config_path]
    if args.mode is not None and not wanted:
        wanted = MODES[args.mode]
    return wanted
