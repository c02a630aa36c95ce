"""`python -m crane_x7_vla_rl.training.cli`, also `crane-x7-vla-rl`: one table of commands.

Each command is imported when it is called, and imports what is heavy when it runs, so that every
`--help` answers at once. Expected failures become one line and an exit code (see errors.ExitCode).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from crane_x7_vla_rl import command_line, old_names
from crane_x7_vla_rl.training import settings
from crane_x7_vla_rl.training.errors import ConfigError, exit_code

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
PROGRAM = command_line.Program(
    name="crane-x7-vla-rl",
    description="Teach policies for the CRANE-X7 and measure them.",
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
        if problems:
            raise ConfigError("the environment is wrong:\n  " + "\n  ".join(problems))

    return command_line.main(PROGRAM, argv, settings.line_to_complete(), check)


if __name__ == "__main__":
    sys.exit(main())
