"""Where views come from: a folder of pictures, or the robot's camera and a person with a board.

A folder is laid out as `run --save` leaves it: `placed*` show the board at its known place, every
other picture shows it anywhere.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import cv2
import numpy as np

from crane_x7_remote.calibrate.board import Board
from crane_x7_remote.calibrate.views import UnusableError, View, look
from crane_x7_remote.errors import CalibrationError, OutputError
from crane_x7_remote.rosbridge import frames
from crane_x7_remote.rosbridge.client import RosbridgeClient
from crane_x7_remote.rosbridge.frames import EncodedFrame
from crane_x7_remote.rosbridge.messages import MessageError
from crane_x7_vla_rl.images import PictureError, decode_picture
from crane_x7_vla_rl.types import Image

logger = logging.getLogger(__name__)

PLACED: Final = "placed"
ENDINGS: Final = (".png", ".jpg", ".jpeg")
MOST_PICTURES: Final = 500
WANTED_VIEWS: Final = 24
NEW_VIEW_PX: Final = 20.0
"""The board must move so far, at 640 pixels, before another view is taken."""
STILL_PX: Final = 1.5
"""A board that moved less than this since the last frame is at rest."""
FRAME_TIMEOUT_S: Final = 5.0
PLACED_FRAMES: Final = 10


@dataclass
class Collected:
    """Views by purpose, and one picture of the placed board."""

    anywhere: list[View] = field(default_factory=list)
    placed: list[View] = field(default_factory=list)
    picture: Image | None = None
    """The last usable picture of the placed board."""


def read_folder(board: Board, folder: Path) -> Collected:
    """Return the views in the folder's pictures; logs why a picture is of no use.

    Raises CalibrationError if there is no picture.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    except OSError as error:
        raise CalibrationError(f"--images {folder} cannot be read: {error.strerror}") from error
    if not paths or len(paths) > MOST_PICTURES:
        raise CalibrationError(
            f"--images {folder} holds {len(paths)} pictures ({', '.join(ENDINGS)}), expected 1 to"
            f" {MOST_PICTURES}"
        )
    collected = Collected()
    for path in paths:
        try:
            image = decode_picture(path.read_bytes())
            view = look(board, image, path.name)
        except OSError as error:
            logger.warning("%s cannot be read: %s", path.name, error.strerror)
        except (PictureError, UnusableError) as error:
            logger.warning("%s: %s", path.name, error)
        else:
            is_placed = path.name.startswith(PLACED)
            # Of pictures of a board at rest, one is enough for the lens.
            if not is_placed or not collected.placed:
                collected.anywhere.append(view)
            if is_placed:
                collected.placed.append(view)
                collected.picture = image
    return collected


class Camera:
    """The robot's camera, one new frame at a time."""

    def __init__(self, client: RosbridgeClient, save: Path | None) -> None:
        self._client = client
        self._save = save
        self._last: EncodedFrame | None = None

    def next_frame(self) -> tuple[EncodedFrame, Image]:
        """Wait for a new frame; raises CalibrationError after a while without one."""
        frame = self._client.wait_frame(self._last, FRAME_TIMEOUT_S)
        if frame is None:
            because = self._client.link.no_frame_because or "check CAMERA_TOPIC and the camera"
            raise CalibrationError(f"no camera frame within {FRAME_TIMEOUT_S:g} s: {because}")
        self._last = frame
        try:
            return frame, frames.decode_image(frame)
        except MessageError as error:
            raise CalibrationError(f"the camera's frame cannot be used: {error}") from error

    def keep(self, frame: EncodedFrame, name: str) -> None:
        """Save the frame as received, if a folder was given; raises OutputError."""
        if self._save is None:
            return
        ending = ".png" if frame.image_bytes.startswith(b"\x89PNG") else ".jpg"
        path = self._save / f"{name}{ending}"
        try:
            path.write_bytes(frame.image_bytes)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}") from error


def collect_views(
    camera: Camera, board: Board, timeout_s: float, say: Callable[[str], None]
) -> list[View]:
    """Return views of a board that a person moves about; ends with enough of them, or in time.

    A view is taken when the board rests, and is not where it was in an earlier one.
    """
    views: list[View] = []
    before: View | None = None
    told = ""
    ends_s = time.monotonic() + timeout_s
    while len(views) < WANTED_VIEWS and time.monotonic() < ends_s:
        frame, image = camera.next_frame()
        name = f"view-{len(views):02d}"
        try:
            view = look(board, image, name)
        except UnusableError as error:
            before, told = None, _tell(say, f"frame {error}", told)
            continue
        rests = before is not None and distance_px(before, view) < STILL_PX
        before = view
        if rests and all(distance_px(view, other) > _new_px(view) for other in views):
            views.append(view)
            camera.keep(frame, name)
            told = _tell(say, f"view {len(views)} of {WANTED_VIEWS}: move and tilt the board", told)
    return views


def collect_placed(camera: Camera, board: Board, say: Callable[[str], None]) -> Collected:
    """Return several views of the board at its place, which must rest; raises CalibrationError."""
    collected = Collected()
    refused = ""
    for _ in range(3 * PLACED_FRAMES):
        frame, image = camera.next_frame()
        try:
            view = look(board, image, PLACED)
        except UnusableError as error:
            refused = str(error)
            continue
        if collected.placed and distance_px(collected.placed[0], view) > STILL_PX:
            say("the board or the camera moved: starting again")
            collected.placed.clear()
        # Counted after a new start, so that no picture from before it stays in the folder.
        camera.keep(frame, f"{PLACED}-{len(collected.placed):02d}")
        collected.placed.append(view)
        collected.picture = image
        if len(collected.placed) == PLACED_FRAMES:
            return collected
    raise CalibrationError(
        f"the placed board was usable in {len(collected.placed)} of {3 * PLACED_FRAMES} frames,"
        f" expected {PLACED_FRAMES} in which it rests" + (f"; a frame {refused}" if refused else "")
    )


def distance_px(one: View, other: View) -> float:
    """Return how far the corners that both views see are apart, on average; inf without any."""
    _, here, there = np.intersect1d(one.ids, other.ids, return_indices=True)
    if not len(here):
        return float("inf")
    return float(np.linalg.norm(one.pixels[here] - other.pixels[there], axis=1).mean())


def _new_px(view: View) -> float:
    return NEW_VIEW_PX * view.size_px[0] / 640


def _tell(say: Callable[[str], None], text: str, told: str) -> str:
    """Say a text unless it was the last one."""
    if text != told:
        say(text)
    return text


def save_picture(path: Path, image: Image) -> None:
    """Write an RGB image as PNG; raises OutputError."""
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(image[:, :, ::-1]))
    try:
        path.write_bytes(encoded.tobytes())
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
