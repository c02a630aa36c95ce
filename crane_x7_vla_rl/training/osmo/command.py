"""`train`: ACT on bags. `--config` and `--override` → a training, or one line that says why not."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from crane_x7_vla_rl.training.errors import ExitCode, exit_code
from crane_x7_vla_rl.training.osmo import config as configuration

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="config.yaml")
    parser.add_argument(
        "--override", action="append", default=[], metavar="KEY=VALUE",
        help="set any key of the file, such as training.lr=5e-5; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true", help="print the whole configuration and end"
    )
    parser.add_argument(
        "--exit-code-file", type=Path, metavar="FILE",
        help="write the exit code of a failure there: torchrun itself always ends with 1",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Train; returns 0. Raises TrainingError, DataError and PolicyLoadError."""
    try:
        return _run(args)
    except Exception as error:
        if args.exit_code_file is not None:
            _note(args.exit_code_file, exit_code(error) or ExitCode.UNEXPECTED)
        raise


def _note(file: Path, code: int) -> None:
    """Write the code, unless another process of this machine failed before."""
    try:
        with file.open("x") as out:
            out.write(f"{code}\n")
    except OSError as error:
        logger.debug("%s: %s", file, error.strerror)


def _run(args: argparse.Namespace) -> int:
    config = configuration.read(args.config, args.override)
    if args.dry_run:
        from crane_x7_vla_rl.training.config import loader

        print(loader.to_yaml(config), end="")
        return 0
    from crane_x7_vla_rl.training import terminal
    from crane_x7_vla_rl.training.osmo.train import train

    with terminal.outlived():
        train(config)
    return 0
