"""`crane-x7-remote calibrate`: a printed board → the camera's lens and pose, as CAMERA_POSE's file.

    calibrate board PATH   write the board as a PDF or PNG, to print
    calibrate run          take images of it, from the robot's camera or a folder, and solve

Nothing is written unless every check passes; docs/robot.md shows how to lay the board.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

from crane_x7_remote import settings as settings_module
from crane_x7_remote import settings_values
from crane_x7_remote.calibrate import lens_fit, pose_fit, report, sheet
from crane_x7_remote.calibrate.board import DEFAULT_SQUARE_MM, Board, Placement
from crane_x7_remote.calibrate.images import (
    WANTED_VIEWS,
    Camera,
    Collected,
    collect_placed,
    collect_views,
    read_folder,
    save_picture,
)
from crane_x7_remote.errors import CalibrationError, ExitCode, OutputError, SettingsError
from crane_x7_remote.rosbridge.client import RosbridgeClient
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_remote.settings import Settings
from crane_x7_vla_rl import camera_pose
from crane_x7_vla_rl.fields import argument_type, within
from crane_x7_vla_rl.lens import Lens

logger = logging.getLogger(__name__)

FLAGS: Final = (
    "rosbridge_host", "rosbridge_port", "rosbridge_proxy", "rosbridge_token", "peer_wait_timeout",
    "camera_topic",
)  # fmt: skip
SQUARE_MM = argument_type(Annotated[float, within(5, 200, "mm")])
DEGREES = argument_type(Annotated[float, within(-360, 360, "degrees")])
METRES = argument_type(Annotated[float, within(-3, 3, "m")])
SECONDS = argument_type(Annotated[float, within(1, 3600, "s")])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the two subcommands and their flags."""
    steps = parser.add_subparsers(dest="step", metavar="STEP", required=True)
    board = steps.add_parser("board", help="write the board as a PDF or PNG, to print")
    board.add_argument("path", type=Path, metavar="PATH", help="file to write, .pdf or .png")
    board.add_argument("--paper", choices=sorted(sheet.PAPERS_MM), default="a4",
                       help="size of the paper, landscape (%(default)s)")  # fmt: skip
    run_parser = steps.add_parser("run", help="take images of the board and find lens and pose")
    for each in (board, run_parser):
        each.add_argument("--square-mm", type=SQUARE_MM, default=DEFAULT_SQUARE_MM, metavar="MM",
                          help="side of a square; for `run`, as measured on the paper"
                          " (%(default)g)")  # fmt: skip
    _add_run_arguments(run_parser)


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--origin-m",
        type=METRES,
        nargs=3,
        required=True,
        metavar=("X", "Y", "Z"),
        help="the board's corner ORIGIN in the base's frame: forward, left, up, in metres; Z is the"
        " thickness of what the paper lies on",
    )
    add("--yaw-deg", type=DEGREES, default=0.0, metavar="DEG",
        help="direction of the arrow X, counter-clockwise from above; 0: away from the robot"
        " (%(default)g)")  # fmt: skip
    add(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="pictures instead of the robot's camera; placed* show the board at its place",
    )
    add("--save", type=Path, metavar="FOLDER", help="keep the camera's pictures here, for --images")
    add("--lens-from", type=Path, metavar="FILE",
        help="keep the lens of this earlier file: only the camera has moved")  # fmt: skip
    add("--timeout", type=SECONDS, default=300.0, metavar="S",
        help="time to show the board from all sides (%(default)g)")  # fmt: skip
    add("-o", "--output", type=Path, default=Path("camera.yaml"), metavar="FILE",
        help="file to write (%(default)s); beside it a picture to check")  # fmt: skip
    add("--force", action="store_true", help="replace an existing file")
    settings_module.add_flags(parser, FLAGS)


def run(args: argparse.Namespace) -> int:
    """Write the board, or the calibration; raises RemoteError."""
    board = Board(args.square_mm / 1e3)
    if args.step == "board":
        return _write_board(sheet.Sheet(board, args.paper), args.path)
    return _run(args, board)


def _write_board(page: sheet.Sheet, path: Path) -> int:
    kinds = {".pdf": sheet.pdf, ".png": sheet.png}
    if path.suffix.lower() not in kinds:
        raise CalibrationError(f"{path}: expected a name that ends with .pdf or .png")
    content = kinds[path.suffix.lower()](page)
    try:
        path.write_bytes(content)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
    print(
        f"{path}: print it on {page.paper} at 100 %, then measure a square:"
        f" {1e3 * page.board.square_m:g} mm"
    )
    return ExitCode.OK


def _run(args: argparse.Namespace, board: Board) -> int:
    settings = settings_module.from_args(args)
    check_picture = args.output.with_suffix(".check.png")
    _check_output(args.output, args.force)
    lens = None if args.lens_from is None else _lens_of(args.lens_from)
    x, y, z = args.origin_m
    placement = Placement((x, y, z), math.radians(args.yaw_deg))
    if args.images is not None:
        collected = read_folder(board, args.images)
    else:
        collected = _from_camera(args, settings, board, wants_views=lens is None)
    found = None if lens is not None else lens_fit.fit(collected.anywhere)
    lens = lens if found is None else found.lens
    assert lens is not None
    posed = pose_fit.fit(collected.placed, lens, placement)
    result = report.Calibration(board, placement, found, posed)
    text = result.as_yaml()
    pose = report.read_back(text, str(args.output))
    try:
        args.output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{args.output} cannot be written: {error.strerror}") from error
    assert collected.picture is not None
    save_picture(check_picture, report.overlay(collected.picture, pose))
    for line in result.summary():
        print(line)
    print(
        f"wrote {args.output}; look at {check_picture}: the red axis leaves the base's middle and"
        f" points away from the robot. Then: crane-x7-remote infer --camera-pose {args.output}"
    )
    return ExitCode.OK


def _check_output(path: Path, force: bool) -> None:
    if not path.parent.is_dir():
        raise OutputError(f"--output {path}: folder {path.parent} does not exist; create it first")
    if path.exists() and not force:
        raise OutputError(f"--output {path} exists; name another file, or add --force")


def _lens_of(path: Path) -> Lens:
    try:
        lens = camera_pose.read(str(path)).lens
    except camera_pose.CameraPoseError as error:
        raise SettingsError(f"--lens-from: {error}") from error
    if lens is None:
        raise SettingsError(
            f"--lens-from: {path} has no lens; name a file that `calibrate run` wrote"
        )
    return lens


def _from_camera(
    args: argparse.Namespace, settings: Settings, board: Board, wants_views: bool
) -> Collected:
    if not sys.stdin.isatty():
        raise CalibrationError(
            "stdin is no terminal, and a person must move the board: run it in a terminal, or give"
            " --images FOLDER"
        )
    if args.save is not None:
        _make_empty_folder(args.save)
    with _camera(settings, args.save) as camera:
        views = []
        if wants_views:
            _say(
                f"Hold the board in front of the camera, still for a moment in each of"
                f" {WANTED_VIEWS} places: everywhere in the image, tilted to all sides."
            )
            views = collect_views(camera, board, args.timeout, _say)
            lens_fit.fit(
                views
            )  # what they lack is said now, while the person still holds the board
        try:
            input("Lay the board at its place, step out of the image, then press Enter: ")
        except EOFError as error:
            raise CalibrationError("stdin ended before the board was at its place") from error
        collected = collect_placed(camera, board, _say)
    collected.anywhere = [*views, collected.placed[0]]
    return collected


def _make_empty_folder(path: Path) -> None:
    """Make the folder; raises OutputError if it holds files, which would be solved, too."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        is_empty = not any(path.iterdir())
    except OSError as error:
        raise OutputError(f"--save {path}: {error.strerror}") from error
    if not is_empty:
        raise OutputError(f"--save {path} holds files already; name another folder")


@contextlib.contextmanager
def _camera(settings: Settings, save: Path | None) -> Iterator[Camera]:
    config = ClientConfig(
        host=settings.rosbridge_host,
        port=settings.rosbridge_port,
        proxy=settings.rosbridge_proxy,
        token=settings_values.token_text(settings.rosbridge_token, "ROSBRIDGE_TOKEN"),
        camera_topic=settings.camera_topic,
        instruction_topic=None,
    )
    with RosbridgeClient(config) as client:
        client.wait_connected(settings.peer_wait_timeout)
        yield Camera(client, save)


def _say(text: str) -> None:
    print(text, flush=True)
