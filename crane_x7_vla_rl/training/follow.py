"""`--follow RUN`: the log of a running training, until it ends. Folder → lines."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import IO, Final

from crane_x7_vla_rl.training.checkpoints import run_folder
from crane_x7_vla_rl.training.checkpoints.run_folder import LOG
from crane_x7_vla_rl.training.errors import OutputError

LAST_LINES: Final = 20
POLL_S: Final = 0.3


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--follow`."""
    parser.add_argument(
        "--follow", type=Path, metavar="RUN",
        help="show the log of the training in this folder; Ctrl-C ends the display alone",
    )  # fmt: skip


def follow(run: Path) -> int:
    """Print the run's last lines, then new ones, until it ends or Ctrl-C; returns 0.

    Raises OutputError where the folder holds no log.
    """
    try:
        with (run.expanduser() / LOG).open(encoding="utf-8", errors="replace") as log:
            return _follow(run, log)
    except FileNotFoundError:
        raise OutputError(
            f"{run} holds no {LOG}; give the folder of a run, which `train` and `sft` name when"
            " they start"
        ) from None
    except OSError as error:
        raise OutputError(f"{run / LOG}: cannot be read: {error.strerror}") from error


def _follow(run: Path, log: IO[str]) -> int:
    print("".join(log.readlines()[-LAST_LINES:]), end="", flush=True)
    try:
        while (held := run_folder.is_held(run.expanduser())) or held is None:
            _print_new(log)
            time.sleep(POLL_S)
        _print_new(log)
    except KeyboardInterrupt:
        print(f"\n{run}: the training continues", file=sys.stderr)
    else:
        print(f"{run}: no training is running in this folder", file=sys.stderr)
    return 0


def _print_new(log: IO[str]) -> None:
    if text := log.read():
        print(text, end="", flush=True)
