"""`convert`: recordings of any supported format → a LeRobot data set, the fastest for training.

Of a LeRobot data set all cameras are kept, and what it says of success and interventions. The
camera that `--camera` names becomes the base camera; if the data set has a base camera already, the
named one is kept alone.

Format v3 is what this project, and today's LeRobot, train on; v2.1 is what openpi's trainer reads.

The data set is complete after every episode; `--resume` continues after the last episode.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Final

from crane_x7_vla_rl.data.reading import AS_STATED, Reading, from_args
from crane_x7_vla_rl.data.reading import add_arguments as add_reading_flags

logger = logging.getLogger(__name__)

FORMATS: Final = ("lerobot-v3.0", "lerobot-v2.1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `convert`."""
    parser.add_argument("source", help="folder, log or bag, or a LeRobot data set's Hub id")
    parser.add_argument("folder", type=Path, help="folder for the LeRobot data set")
    parser.add_argument("--instruction", default="", help="task of episodes without an instruction")
    add_reading_flags(parser)
    parser.add_argument(
        "--format", choices=FORMATS, default=FORMATS[0],
        help="lerobot-v2.1 for openpi's trainer (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true", help="continue after the last episode in FOLDER"
    )


def run(args: argparse.Namespace) -> int:
    """Convert; returns 0. Raises DataError naming the file, episode and field."""
    count = convert(
        args.source,
        args.folder,
        args.instruction,
        resume=args.resume,
        form=args.format,
        reading=from_args(args),
    )
    logger.info("%s holds %d episodes", args.folder, count)
    return 0


def convert(
    source_path: str | Path,
    folder: Path,
    instruction: str,
    *,
    resume: bool,
    form: str = FORMATS[0],
    reading: Reading = AS_STATED,
) -> int:
    """Write the episodes of `source_path` into `folder` and return their number in the data set.

    `form` is one of FORMATS. Raises DataError for a broken episode, or images of another size than
    the first; the episodes before it are kept, and the conversion can be resumed.
    """
    from crane_x7_vla_rl.data.lerobot import Extras, LeRobotWriter, V21Writer
    from crane_x7_vla_rl.data.progress import episode_bar
    from crane_x7_vla_rl.data.source import open_source

    source = open_source(source_path, instruction=instruction, reading=reading, all_cameras=True)
    size, extras = Extras.of(source[0])
    kind = V21Writer if form == "lerobot-v2.1" else LeRobotWriter
    with (
        kind(folder, source.fps, size, resume=resume, extras=extras) as writer,
        episode_bar("episodes", len(source)) as show,
    ):
        for index in range(len(writer), len(source)):
            writer.add(source[index])
            show(len(writer))
        return len(writer)
