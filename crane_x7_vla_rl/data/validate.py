"""`validate`: problems of a data set, or its content. Folder, file or Hub id → a table.

Exit code 1 if there is a problem. Heavy imports happen when the command runs, so that `--help`
answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crane_x7_vla_rl import tables
from crane_x7_vla_rl.data import reading
from crane_x7_vla_rl.fields import Count, argument_type
from crane_x7_vla_rl.log_text import escape

if TYPE_CHECKING:
    from crane_x7_vla_rl.data.source import EpisodeSource
    from crane_x7_vla_rl.data.validate_checks import Contents, Problem

EXIT_PROBLEMS = 1
SHOWN_PROBLEMS = 200
SHOWN_INSTRUCTIONS = 20
JUDGED = {True: "succeeded", False: "failed", None: "not judged"}
FIGURES = ("min", "q01", "mean", "q99", "max", "std")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `validate`."""
    parser.add_argument("path", help="folder, log or bag, or a LeRobot data set's Hub id")
    parser.add_argument(
        "--instruction", default="",
        help="task of episodes without one (default: report them as problems)",
    )  # fmt: skip
    parser.add_argument(
        "--workers",
        type=argument_type(Count),
        default=os.cpu_count() or 1,
        help="threads (%(default)s)",
    )
    parser.add_argument(
        "--frame", type=Path, metavar="FILE.png",
        help="write the first image to FILE.png: check its colours and the camera",
    )  # fmt: skip
    reading.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Check `args.path`; return 0 if it is whole, 1 if there is a problem."""
    from crane_x7_vla_rl.data.progress import episode_bar
    from crane_x7_vla_rl.data.validate_checks import Contents, check_episodes, open_tolerantly

    source, problems = open_tolerantly(args.path, args.instruction, reading.from_args(args))
    contents = Contents()
    if source is not None:
        with episode_bar("episodes", len(source)) as show:
            problems += check_episodes(
                source, workers=args.workers, contents=contents, progress=show
            )
    if args.json:
        print(json.dumps(_as_json(args.path, source, problems, contents), ensure_ascii=False))
    elif problems or source is None:
        _print_problems(args.path, problems, 0 if source is None else len(source))
    else:
        _print_summary(source, contents)
    if problems or source is None:
        return EXIT_PROBLEMS
    if args.frame is not None:
        _write_frame(source, args.frame)
        print(f"First image: {args.frame}", file=sys.stderr if args.json else sys.stdout)
    return 0


def _as_json(
    path: str, source: EpisodeSource | None, problems: Sequence[Problem], contents: Contents
) -> dict[str, Any]:
    found = {"path": path, "problems": [asdict(problem) for problem in problems]}
    if problems or source is None:
        return {**found, "episodes": 0 if source is None else len(source)}
    from crane_x7_vla_rl.data.statistics import compute_statistics

    statistics = compute_statistics(source)
    return {
        **found,
        "episodes": contents.episodes,
        "frames": contents.frames,
        "fps": source.fps,
        "image_sizes": [f"{width}x{height}" for width, height in contents.sizes],
        "outcomes": {JUDGED[outcome]: count for outcome, count in contents.outcomes.items()},
        "interventions": None
        if contents.interventions is None
        else {
            "frames": contents.interventions,
            "episodes": contents.intervened,
        },
        "instructions": dict(contents.instructions),
        "joints_rad": {
            kind: {name: [float(x) for x in getattr(summary, name)] for name in FIGURES}
            for kind, summary in (("state", statistics.proprio), ("action", statistics.action))
        },
    }


def _print_problems(path: str, problems: Sequence[Problem], episodes: int) -> None:
    rows = [
        (
            _below(problem.file, path),
            "" if problem.episode is None else str(problem.episode),
            problem.field,
            problem.what,
        )
        for problem in problems[:SHOWN_PROBLEMS]
    ]
    title = f"{path}: {len(problems)} problem{'' if len(problems) == 1 else 's'}"
    tables.show(title, ("file", "episode", "field", "problem"), rows)
    if len(problems) > SHOWN_PROBLEMS:
        print(f"… and {len(problems) - SHOWN_PROBLEMS} more")
    wrong = len({problem.episode for problem in problems if problem.episode is not None})
    print(f"{episodes - wrong} of {episodes} readable episodes are whole.")


def _print_summary(source: EpisodeSource, contents: Contents) -> None:
    from crane_x7_vla_rl.data.statistics import compute_statistics
    from crane_x7_vla_rl.robot import JOINT_NAMES

    sizes = ", ".join(f"{width}×{height}" for width, height in contents.sizes)
    print(
        escape(source.name),
        f": {contents.episodes} episodes, {contents.frames} frames at {source.fps:g}"
        f" per second ({contents.frames / source.fps / 60:.1f} min), images {sizes};"
        " no problems.",
        sep="",
    )
    outcomes = (f"{count} {JUDGED[outcome]}" for outcome, count in contents.outcomes.most_common())
    print(f"Outcomes: {', '.join(outcomes)}")
    if contents.interventions is not None:
        print(f"Interventions: {contents.interventions} frames in {contents.intervened} episodes")
    for words, count in contents.instructions.most_common(SHOWN_INSTRUCTIONS):
        print(f"{count:6d} × {escape(words)}")
    if len(contents.instructions) > SHOWN_INSTRUCTIONS:
        print(f"   … and {len(contents.instructions) - SHOWN_INSTRUCTIONS} more instructions")
    statistics = compute_statistics(source)
    rows = []
    for joint, joint_name in enumerate(JOINT_NAMES):
        for kind, summary in (("state", statistics.proprio), ("action", statistics.action)):
            values = (f"{getattr(summary, name)[joint]:.3f}" for name in FIGURES)
            rows.append((joint_name.removeprefix("crane_x7_"), kind, *values))
    tables.show("joints, rad", ("joint", "kind", *FIGURES), rows, right=FIGURES)


def _below(file: str, path: str) -> str:
    """Return `file` without the folder in the table's title."""
    return file.removeprefix(path.rstrip("/") + "/")


def _write_frame(source: EpisodeSource, file: Path) -> None:
    import cv2

    encoded = cv2.imencode(".png", source[0].image(0)[:, :, ::-1])[1]
    file.write_bytes(encoded.tobytes())
