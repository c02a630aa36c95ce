"""`python -m crane_x7_vla_rl.training.cli`, also `crane-x7-vla-rl`: one table of commands.

Each command is imported when it is called, and imports what is heavy when it runs, so that every
`--help` answers at once. Expected failures become one line and an exit code (see errors.ExitCode).
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Sequence

from crane_x7_vla_rl import log_text
from crane_x7_vla_rl.suggest import did_you_mean
from crane_x7_vla_rl.training import settings
from crane_x7_vla_rl.training.errors import ConfigError, ExitCode, exit_code

COMMANDS = {
    "sft": ("training.sft.command", "teach a policy by demonstrations"),
    "train": ("training.rl.command", "let a policy learn by trying in simulation"),
    "config": ("training.rl.config_command", "write a configuration for train"),
    "demos": ("data.demos.command", "make demonstrations in simulation"),
    "validate": ("data.validate", "say what is wrong in a data set"),
    "convert": ("data.convert", "recordings into a LeRobot data set"),
    "evaluate": ("training.evaluate.command", "success of a checkpoint in simulation"),
    "merge": ("training.checkpoints.merge", "write an adapter and its base as one model"),
}
"""Name → module below `crane_x7_vla_rl`, with `add_arguments(parser)` and `run(args) -> int`, and
its line of help."""
LEVELS = ("debug", "info", "warning", "error")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command named in `argv` and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    log_text.install()
    problems = settings.tidy_environment()
    parser = argparse.ArgumentParser(
        prog="crane-x7-vla-rl", description="Teach policies for the CRANE-X7 and measure them."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in argv if word in COMMANDS), None)
    for name, (module_name, help_text) in COMMANDS.items():
        command = commands.add_parser(
            name, help=help_text, description=help_text, allow_abbrev=False
        )
        if name == chosen:
            try:
                module = importlib.import_module(f"crane_x7_vla_rl.{module_name}")
            except ModuleNotFoundError as error:
                return _missing(name, error)
            command.add_argument(
                "--log-level", choices=LEVELS, default="info", help="(%(default)s)"
            )
            module.add_arguments(command)
            usage = command.format_usage()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(log_text.tell(_unknown(unknown, usage)))
    _configure_logging(args.log_level)
    try:
        if problems:
            raise ConfigError("the environment is wrong:\n  " + "\n  ".join(problems))
        return int(module.run(args))
    except ModuleNotFoundError as error:
        return _missing(args.command, error)
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        return _fail(args.command, error, code)
    except KeyboardInterrupt:
        return 128 + 2


def _unknown(words: Sequence[str], usage: str) -> str:
    """Return what to say about words that nobody takes, with the nearest flags."""
    flags = re.findall(r"--[\w-]+", usage)
    hints = [did_you_mean(word.partition("=")[0], flags) for word in words]
    return ", ".join(f"{word} is unknown{hint}" for word, hint in zip(words, hints, strict=True))


def _missing(command: str, error: ModuleNotFoundError) -> int:
    """Say which package is missing; one of ours is a fault, and raised again."""
    if (error.name or "").startswith("crane_x7"):
        raise error
    text = f"the package {error.name} is missing: pip install 'crane-x7-remote[train,sim]'"
    return _fail(command, text, ExitCode.USAGE)


def _fail(command: str, error: object, code: int) -> int:
    print(log_text.tell(f"crane-x7-vla-rl {command}: {error}"), file=sys.stderr)
    return int(code)


def _configure_logging(level: str) -> None:
    line = "%(levelname)s %(asctime)s %(name)s: %(message)s"
    log_text.configure(level, line, datefmt="%Y-%m-%d %H:%M:%S")


if __name__ == "__main__":
    sys.exit(main())
