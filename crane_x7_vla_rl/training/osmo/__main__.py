"""`python -m crane_x7_vla_rl.training.osmo train|evaluate|download`; also configs/osmo/train.py.

Expected failures become one line and an exit code (see training/errors.py).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from crane_x7_vla_rl import command_line
from crane_x7_vla_rl.training import settings
from crane_x7_vla_rl.training.errors import ConfigError, exit_code

logger = logging.getLogger(__name__)

ROOM = "crane_x7_vla_rl.training.osmo"
PROGRAM = command_line.Program(
    name=f"python -m {ROOM}",
    description="ACT on ROS bags of any arm, as tasks of NVIDIA OSMO or by hand.",
    commands={
        "train": (f"{ROOM}.command", "train ACT on ROS bags"),
        "evaluate": (f"{ROOM}.evaluate_command", "measure a checkpoint on a LeRobot data set"),
        "download": (f"{ROOM}.download_command", "download bags from Azure Blob Storage"),
    },
    failure_code=exit_code,
    old_names={},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command named in `argv` and return its exit code."""
    problems = settings.tidy_environment()

    def check() -> None:
        if problems:
            raise ConfigError("wrong environment variables:\n  " + "\n  ".join(problems))

    return command_line.main(PROGRAM, argv, None, check)


if __name__ == "__main__":
    sys.exit(main())
