"""`sft`: flags, files and a checkpoint → one `SftConfig`, and its run.

A resumed run starts from the configuration that its checkpoint holds; files, flags and overrides
given now override it, and changes are listed. An incomplete checkpoint is replaced by the
newest complete one of its run.
"""

from __future__ import annotations

import argparse
from typing import Final

from crane_x7_vla_rl.policies.base import DEFAULT_UNNORM_KEY
from crane_x7_vla_rl.training import follow, settings, terminal
from crane_x7_vla_rl.training.checkpoints import resume
from crane_x7_vla_rl.training.checkpoints.resume import Resumption, Rules, configure
from crane_x7_vla_rl.training.config import loader
from crane_x7_vla_rl.training.errors import LaterError
from crane_x7_vla_rl.training.sft.config import SftConfig

RULES: Final = Rules(
    fixed=(
        "backend", "policy.statistics", "policy.state_tokens", "policy.chunk_steps",
        "lora.enabled", "lora.rank", "lora.alpha", "lora.targets",
    ),
    free=("output.", "logging.", "publish.", "training.device", "data.workers"),
    decided="another model",
)  # fmt: skip
"""Tensors, and what they mean, stay the same."""
COMMON: Final = (
    "config", "override", "resume", "resume_from_checkpoint", "follow", "backend", "data.root",
    "data.instruction", "data.image_size", "training.batch_size", "training.num_epochs",
    "training.max_steps", "training.learning_rate", "training.device", "training.seed",
    "lora.enabled", "lora.rank", "policy.model", "policy.statistics", "output.experiment_name",
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
    follow.add_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Train; returns 0 also after SIGTERM, once everything is saved.

    Raises TrainingError and DataError.
    """
    if args.follow is not None:
        return follow.follow(args.follow)
    with terminal.outlived():
        config, resumption = read(args)
        if config.backend == "openpi":
            raise LaterError(
                "--backend openpi is not implemented yet (see 'Not yet' in CHANGELOG.md); use"
                " --backend openvla"
            )
        from crane_x7_vla_rl.training import preflight

        preflight.raise_all(
            preflight.run(config),
            preflight.data(config.data.root, "--data-root"),
            preflight.model(config.policy.model, "--model"),
            preflight.statistics(config.policy.model, DEFAULT_UNNORM_KEY, config.policy.statistics),
        )
        from crane_x7_vla_rl.training.sft.loop import train

        train(config, resumption)
    return 0


def read(args: argparse.Namespace) -> tuple[SftConfig, Resumption | None]:
    """Return the configuration and what to resume; raises ConfigError, ResumeError."""
    wanted = loader.layers(args, SftConfig)
    new = [*settings.layers(keys=settings.SFT_VARIABLES), *wanted]
    folder = resume.folder(args.resume, lambda: loader.build(SftConfig, new).output_dir)
    if folder is None:
        return loader.build(SftConfig, new), None
    return configure(SftConfig, wanted, folder, {"output.dir": str(folder.parent)}, RULES)
