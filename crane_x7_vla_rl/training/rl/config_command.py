"""`config`: a template's name → a whole configuration of `train` as YAML, for `--config`."""

from __future__ import annotations

import argparse
from pathlib import Path

from crane_x7_vla_rl.training import settings
from crane_x7_vla_rl.training.errors import OutputError
from crane_x7_vla_rl.training.rl.config import TEMPLATES, template


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `config`."""
    parser.add_argument(
        "--template", choices=tuple(TEMPLATES), default="default",
        help="fast: a check of the installation; full: a real run, on a large GPU (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="new file (default: standard output)"
    )


def run(args: argparse.Namespace) -> int:
    """Write the template; it overrides variables.

    Raises ConfigError for a wrong variable, OutputError where the file exists or cannot be written.
    """
    text = template(args.template, settings.layers())
    if args.output is None:
        print(text, end="")
        return 0
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with args.output.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise OutputError(f"{args.output}: cannot be written: {error.strerror}") from error
    print(f"written to {args.output}")
    return 0
