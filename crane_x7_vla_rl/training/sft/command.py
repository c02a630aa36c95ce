"""`sft`: flags, files and a checkpoint → one `SftConfig`, and its run.

A resumed run starts from the configuration that its checkpoint holds; files, flags and overrides
given now override it, and changes are listed. An incomplete checkpoint is replaced by the
newest complete one of its run.
"""

from __future__ import annotations

import argparse
from typing import Final

from crane_x7_vla_rl.policies.base import DEFAULT_UNNORM_KEY
from crane_x7_vla_rl.training import dashboard, follow, settings, terminal
from crane_x7_vla_rl.training.checkpoints import resume
from crane_x7_vla_rl.training.checkpoints.resume import Resumption, Rules, configure
from crane_x7_vla_rl.training.config import loader
from crane_x7_vla_rl.training.lerobot.request import Request, Wish
from crane_x7_vla_rl.training.sft.by_lerobot import request
from crane_x7_vla_rl.training.sft.config import SftConfig

RULES: Final = Rules(
    fixed=(
        "backend", "policy.statistics", "policy.state_tokens", "policy.chunk_steps",
        "policy.action_head", "policy.film", "lora.enabled", "lora.rank", "lora.alpha",
        "lora.targets",
    ),
    free=("output.", "logging.", "publish.", "training.device", "data.workers"),
    decided="another model",
)  # fmt: skip
"""Tensors, and what they mean, stay the same."""
COMMON: Final = (
    "config", "override", "resume", "resume_from_checkpoint", "follow", "dashboard", "backend",
    "data.root", "data.more", "data.instruction", "data.image_size", "training.batch_size",
    "training.num_epochs",
    "training.max_steps", "training.learning_rate", "training.device", "training.seed",
    "lora.enabled", "lora.rank", "policy.type", "policy.model",
    "policy.statistics", "output.experiment_name",
    "output.dir", "output.save_steps", "logging.log_steps", "logging.use_wandb",
    "publish.push_to_hub", "publish.hub_model_id",
)  # fmt: skip
"""See command_line."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `sft`."""
    loader.add_arguments(parser, SftConfig)
    resume.add_argument(parser, "checkpoint-<step>, last")
    parser.add_argument(
        "--resume-from-checkpoint", dest="resume", metavar="FOLDER|auto",
        help="older name of --resume",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true", help="print the configuration and end; trains nothing"
    )
    follow.add_argument(parser)
    dashboard.add_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Train; returns 0 also after SIGTERM, once everything is saved.

    Raises TrainingError and DataError.
    """
    if args.follow is not None:
        return follow.follow(args.follow)
    if (request := by_lerobot(args)) is not None:
        from crane_x7_vla_rl.training.lerobot.start import go

        return go(*request)
    with terminal.outlived():
        config, resumption = read(args)
        if args.dry_run:
            print(loader.to_yaml(config), end="")
            return 0
        from crane_x7_vla_rl.training import preflight

        preflight.raise_all(
            preflight.run(config),
            preflight.data(config.data.root, "--data-root"),
            *(preflight.data(each, "--more-data") for each in config.data.more),
            preflight.model(config.policy.model, "--model"),
            preflight.statistics(config.policy.model, DEFAULT_UNNORM_KEY, config.policy.statistics),
        )
        from crane_x7_vla_rl.training.sft.loop import train

        with dashboard.shown(args.dashboard, config.output_dir):
            train(config, resumption)
    return 0


def by_lerobot(args: argparse.Namespace) -> tuple[Request, Wish] | None:
    """Return what LeRobot shall train; None for a policy of this project.

    Raises ConfigError.
    """
    wanted = [*settings.layers(keys=settings.SFT_VARIABLES), *loader.layers(args, SftConfig)]
    given = {key: value for layer in wanted for key, value in layer.values.items()}
    if given.get("backend") not in ("openpi", "lerobot"):
        return None
    config = loader.build(SftConfig, wanted)
    training = config.training
    epochs = None if training.max_steps is not None else training.num_epochs
    warmup = training.warmup_ratio if "training.warmup_ratio" in given else None
    resume = () if args.resume is None else (args.resume,)
    wish = Wish(
        resume, args.dry_run, config.data.instruction, epochs, warmup, config.data.unit or "rad"
    )
    return request(config, given), wish


def read(args: argparse.Namespace) -> tuple[SftConfig, Resumption | None]:
    """Return the configuration and what to resume; raises ConfigError, ResumeError."""
    wanted = loader.layers(args, SftConfig)
    new = [*settings.layers(keys=settings.SFT_VARIABLES), *wanted]
    folder = resume.folder(args.resume, lambda: loader.build(SftConfig, new).output_dir)
    if folder is None:
        return loader.build(SftConfig, new), None
    return configure(SftConfig, wanted, folder, {"output.dir": str(folder.parent)}, RULES)
