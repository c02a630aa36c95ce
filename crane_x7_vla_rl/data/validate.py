"""`validate`: what is wrong in a data set, or what it holds. Folder, file or Hub id → a table.

Exit code 1 where anything is wrong. Heavy imports happen when the command runs, so that `--help`
answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crane_x7_vla_rl.fields import Count, argument_type
from crane_x7_vla_rl.log_text import escape

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from crane_x7_vla_rl.data.source import EpisodeSource
    from crane_x7_vla_rl.data.validate_checks import Contents, Problem

EXIT_PROBLEMS = 1
SHOWN_PROBLEMS = 200
SHOWN_INSTRUCTIONS = 20
PIPE_WIDTH = 160
"""Columns of the table where standard output is no terminal."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `validate`."""
    parser.add_argument("path", help="folder, log or bag, or a LeRobot data set's Hub id")
    parser.add_argument(
        "--instruction", default="", help="task of episodes that name none; without this flag,"
        " that counts as a problem",
    )  # fmt: skip
    parser.add_argument(
        "--workers",
        type=argument_type(Count),
        default=os.cpu_count() or 1,
        help="threads (%(default)s)",
    )
    parser.add_argument(
        "--frame", type=Path, metavar="FILE.png", help="write the first picture there: look whether"
        " red is red, and the camera the right one",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Check `args.path`; return 0 where it is whole, 1 where anything is wrong."""
    from rich.console import Console

    from crane_x7_vla_rl.data.progress import episode_bar
    from crane_x7_vla_rl.data.validate_checks import Contents, check_episodes, open_tolerantly

    terminal = sys.stdout.isatty()
    console = Console(file=sys.stdout, width=None if terminal else PIPE_WIDTH, highlight=False)
    source, problems = open_tolerantly(args.path, args.instruction)
    contents = Contents()
    if source is not None:
        with episode_bar("episodes", len(source)) as show:
            problems += check_episodes(
                source, workers=args.workers, contents=contents, progress=show
            )
    if problems or source is None:
        _print_problems(console, args.path, problems, 0 if source is None else len(source))
        return EXIT_PROBLEMS
    _print_summary(console, source, contents)
    if args.frame is not None:
        _write_frame(source, args.frame)
        console.print(f"First picture: {args.frame}", soft_wrap=True)
    return 0


def _print_problems(
    console: Console, path: str, problems: Sequence[Problem], episodes: int
) -> None:
    from rich.table import Table

    table = Table(
        title=f"{path}: {len(problems)} problem{'' if len(problems) == 1 else 's'}",
        title_justify="left",
    )
    for name in ("file", "episode", "field", "what is wrong"):
        table.add_column(name, overflow="fold")
    for problem in problems[:SHOWN_PROBLEMS]:
        number = "" if problem.episode is None else str(problem.episode)
        file = _below(problem.file, path)
        table.add_row(*(_plain(text) for text in (file, number, problem.field, problem.what)))
    console.print(table)
    if len(problems) > SHOWN_PROBLEMS:
        console.print(f"… and {len(problems) - SHOWN_PROBLEMS} more")
    wrong = len({problem.episode for problem in problems if problem.episode is not None})
    console.print(f"{episodes - wrong} of {episodes} readable episodes are whole.")


def _print_summary(console: Console, source: EpisodeSource, contents: Contents) -> None:
    from rich.table import Table

    from crane_x7_vla_rl.data.statistics import compute_statistics
    from crane_x7_vla_rl.robot import JOINT_NAMES

    sizes = ", ".join(f"{width}×{height}" for width, height in contents.sizes)
    console.print(
        f"{source.name}: {contents.episodes} episodes, {contents.frames} frames at {source.fps:g}"
        f" per second ({contents.frames / source.fps / 60:.1f} min), pictures {sizes};"
        " nothing is wrong.",
        soft_wrap=True,
    )
    judged = {True: "succeeded", False: "failed", None: "not judged"}
    outcomes = (f"{count} {judged[outcome]}" for outcome, count in contents.outcomes.most_common())
    console.print(f"Outcomes: {', '.join(outcomes)}")
    for words, count in contents.instructions.most_common(SHOWN_INSTRUCTIONS):
        console.print(_plain(f"{count:6d} × {words}"), soft_wrap=True)
    if len(contents.instructions) > SHOWN_INSTRUCTIONS:
        console.print(
            f"   … and {len(contents.instructions) - SHOWN_INSTRUCTIONS} more instructions"
        )
    statistics = compute_statistics(source)
    table = Table(title="joints, rad", title_justify="left")
    names = ("min", "q01", "mean", "q99", "max", "std")
    for column in ("joint", "", *names):
        table.add_column(column, justify="right" if column in names else "left", overflow="fold")
    for joint, joint_name in enumerate(JOINT_NAMES):
        for kind, summary in (("state", statistics.proprio), ("action", statistics.action)):
            values = (f"{getattr(summary, name)[joint]:.3f}" for name in names)
            shown = joint_name.removeprefix("crane_x7_") if kind == "state" else ""
            table.add_row(shown, kind, *values)
    console.print(table)


def _below(file: str, path: str) -> str:
    """Return `file` without the folder that the table's title names already."""
    return file.removeprefix(path.rstrip("/") + "/")


def _plain(text: str) -> Text:
    """Return text that no bracket in it can colour, and no control character in it changes."""
    from rich.text import Text

    return Text(escape(text))


def _write_frame(source: EpisodeSource, file: Path) -> None:
    import cv2

    encoded = cv2.imencode(".png", source[0].image(0)[:, :, ::-1])[1]
    file.write_bytes(encoded.tobytes())
