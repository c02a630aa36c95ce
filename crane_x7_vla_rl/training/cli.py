"""`python -m crane_x7_vla_rl.training.cli`, also `crane-x7-vla-rl`: one table of commands.

Each command is imported when it is called, and imports heavy packages when it runs: every
`--help` is quick. Expected failures become one line and an exit code (see errors.ExitCode).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from crane_x7_vla_rl import command_line, old_names
from crane_x7_vla_rl.training import settings
from crane_x7_vla_rl.training.errors import ConfigError, exit_code

logger = logging.getLogger(__name__)

COMMANDS = {
    "sft": ("training.sft.command", "train a policy on demonstrations"),
    "train": ("training.rl.command", "train a policy by reinforcement learning in simulation"),
    "point": ("training.pointing.command", "train a new small policy, beginning with looking"),
    "lerobot": ("training.lerobot.command", "train ACT, SmolVLA, π0 … by LeRobot"),
    "config": ("training.rl.config_command", "write a configuration for train"),
    "demos": ("data.demos.command", "record demonstrations in simulation"),
    "validate": ("data.validate", "report problems in a data set"),
    "convert": ("data.convert", "convert recordings to a LeRobot data set"),
    "evaluate": ("training.evaluate.command", "measure a checkpoint's success rate in simulation"),
    "merge": ("training.checkpoints.merge", "merge an adapter and its base into one model"),
}
"""Name → module below `crane_x7_vla_rl`, with `add_arguments(parser)` and `run(args) -> int`, and
its line of help."""
PROGRAM = command_line.Program(
    name="crane-x7-vla-rl",
    description="Train policies for the CRANE-X7 and measure them.",
    commands={
        name: (f"crane_x7_vla_rl.{module}", text) for name, (module, text) in COMMANDS.items()
    },
    failure_code=exit_code,
    old_names=old_names.FLAGS,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command named in `argv` and return its exit code."""
    problems = settings.tidy_environment()

    def check() -> None:
        for line in settings.older_variables():
            logger.warning("%s", line)
        if problems:
            raise ConfigError("wrong environment variables:\n  " + "\n  ".join(problems))

    return command_line.main(PROGRAM, argv, settings.line_to_complete(), check)


if __name__ == "__main__":
    sys.exit(main())
