"""A run as video and still images: `Recording` and the result of the tasks → MP4, GIF, PNG.

Each frame shows the whole arm; its inset shows the policy's last image. The caption's seconds count
from the loop's start, like the video's own time and report.json.

Legend: images are (H, W, 3) uint8 RGB; times in s since the loop started.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import cv2
import numpy as np

from crane_x7_remote.demo.recorder import Hand, Recording
from crane_x7_remote.demo.report import DemoResult
from crane_x7_remote.rosbridge.frames import EncodedFrame, decode_image
from crane_x7_vla_rl.camera import BASE_CAMERA, VIEW_CAMERA
from crane_x7_vla_rl.types import Image

VIDEO_HZ: Final = 15
GIF_HZ: Final = 10
GIF_WIDTH: Final = 640
GIF_COLOURS: Final = 128
PALETTE_PICTURES, PALETTE_PIXELS = 12, 8
"""Frames from which the palette is made, and the fewest pixels of a colour in it."""
TAIL_S: Final = 1.0
"""How long the video continues after the run."""
NOTE_S: Final = 2.0
"""How long the caption says that a task is done or that a hand takes a cube."""
STRIP_HEIGHT: Final = 64
INSET_SHARE: Final = 0.3
"""Width of the inset, as a share of the frame's width."""
INSET_TITLE: Final = "what the policy sees"
WHITE, GREY, AMBER, GREEN, DARK = (
    (240, 240, 240), (150, 150, 150), (255, 190, 60), (120, 220, 120), (24, 24, 24),
)  # fmt: skip


class Film:
    """The frame of each moment of a run."""

    def __init__(
        self, recording: Recording, result: DemoResult, rate_hz: float | None = None
    ) -> None:
        """`rate_hz` is the loop's rate, for the inset."""
        self._recording = recording
        self._result = result
        self._rate_hz = rate_hz
        self._start_s = recording.start_s
        self._shots = recording.views or recording.frames
        self._camera = VIEW_CAMERA if recording.views else BASE_CAMERA
        self._stamps = [shot.stamp_s - self._start_s for shot in self._shots]
        self._decoded: dict[int, Image] = {}

    @property
    def end_s(self) -> float:
        """Time of the last frame: shortly after the run, or when the recorded frames end."""
        if not self._shots:
            return 0.0
        return max(0.0, min(self._result.duration_s + TAIL_S, self._stamps[-1]))

    def times(self, rate_hz: float) -> list[float]:
        """Return the times of the frames of a video at `rate_hz`."""
        if not self._shots:
            return []
        return [index / rate_hz for index in range(int(self.end_s * rate_hz) + 1)]

    def at(self, time_s: float) -> Image:
        """Return the frame of this moment with inset and caption."""
        shot = self._shots[max(0, bisect_right(self._stamps, time_s) - 1)]
        picture = self._decode(shot).copy()
        self._draw_inset(picture, time_s)
        for hand in self._hands(time_s):
            self._draw_hand(picture, hand)
        return np.concatenate([picture, self._strip(picture.shape[1], time_s)])

    def instruction_at(self, time_s: float) -> str:
        """Return the instruction in force."""
        given = self._recording.instructions
        texts = [text for since_s, text in given if since_s - self._start_s <= time_s]
        return texts[-1] if texts else (given[0][1] if given else "")

    def notes_at(self, time_s: float) -> list[str]:
        """Return the latest events: a task done, a cube taken by a hand."""
        notes = [
            f"done after {task.done_s:.1f} s: {task.instruction}"
            for task in self._result.tasks
            if task.done_s is not None and 0 <= time_s - task.done_s < NOTE_S
        ]
        return notes + [f"a hand takes the {hand.colour} cube" for hand in self._hands(time_s)]

    def policy_picture(self, time_s: float) -> tuple[EncodedFrame, float] | None:
        """Return the image of the newest trajectory, and the image's age when the trajectory came;
        None before the first."""
        recording, now_s = self._recording, self._start_s + time_s
        index = bisect_right(recording.arrivals_s, now_s) - 1
        if index < 0 or not recording.frames:
            return None
        stamp_s = recording.trajectories[index].stamp_s
        frame = min(recording.frames, key=lambda frame: abs(frame.stamp_s - stamp_s))
        return frame, recording.arrivals_s[index] - stamp_s

    def telling_times(self) -> list[float]:
        """Return the start, the moment before the task changes and the end."""
        if not self._shots:
            return []
        changes = [since_s - self._start_s for since_s, _ in self._recording.instructions[1:]]
        return [0.0, *(max(0.0, change_s - 0.1) for change_s in changes), self.end_s]

    def _hands(self, time_s: float) -> list[Hand]:
        since = [(time_s - (hand.time_s - self._start_s), hand) for hand in self._recording.hands]
        return [hand for since_s, hand in since if 0 <= since_s < NOTE_S]

    def _decode(self, frame: EncodedFrame) -> Image:
        key = id(frame)
        if key not in self._decoded:
            # Keep the shot and the inset of this moment and of the previous one.
            if len(self._decoded) > 4:
                self._decoded.clear()
            self._decoded[key] = decode_image(frame)
        return self._decoded[key]

    def _draw_inset(self, picture: Image, time_s: float) -> None:
        """Draw the policy's last image into the upper right corner, with rate and latency."""
        found = self.policy_picture(time_s)
        if found is None or self._shots is self._recording.frames:
            return
        frame, age_s = found
        seen = self._decode(frame)
        width = round(INSET_SHARE * picture.shape[1])
        height = round(seen.shape[0] * width / seen.shape[1])
        scale = picture.shape[1] / 640
        margin, line = round(10 * scale), round(20 * scale)
        right = picture.shape[1] - margin
        small = cv2.resize(seen, (width, height), interpolation=cv2.INTER_AREA)
        corners = (right - width - 2, margin - 2), (right + 1, margin + height + 2 * line)
        cv2.rectangle(picture, *corners, DARK, -1)
        picture[margin : margin + height, right - width : right] = small
        rate = "" if self._rate_hz is None else f"{self._rate_hz:.1f} Hz, "
        for row, text in enumerate((INSET_TITLE, f"{rate}command {1e3 * age_s:.0f} ms later")):
            at = (right - width + 4, margin + height + round((0.75 + 0.9 * row) * line))
            _write(picture, text, at, 0.42 * scale, WHITE if row == 0 else GREY)

    def _draw_hand(self, picture: Image, hand: Hand) -> None:
        """Draw an arrow along which a hand moved the cube."""
        if hand.from_m is None or hand.to_m is None:
            return
        height, width = picture.shape[:2]
        points = self._camera.project([hand.from_m, hand.to_m], width, height)
        if not np.isfinite(points).all():
            return
        start, end = ((round(float(u)), round(float(v))) for u, v in points)
        cv2.arrowedLine(picture, start, end, AMBER, 2, cv2.LINE_AA, tipLength=0.12)
        size, at = 0.5 * width / 640, (start[0] + 12, start[1] + 4)
        (wide, high), _ = cv2.getTextSize("a hand", cv2.FONT_HERSHEY_SIMPLEX, size, 1)
        corners = (at[0] - 4, at[1] - high - 4), (at[0] + wide + 4, at[1] + 5)
        cv2.rectangle(picture, *corners, DARK, -1)
        _write(picture, "a hand", at, size, AMBER)

    def _strip(self, width: int, time_s: float) -> Image:
        """Return the caption: time and instruction, below them the latest events."""
        scale = width / 640
        strip: Image = np.full((2 * round(STRIP_HEIGHT * scale / 2), width, 3), DARK, np.uint8)
        left = round(10 * scale)
        words = f"{time_s:5.1f} s  {self.instruction_at(time_s)}"
        _write(strip, words, (left, round(27 * scale)), 0.65 * scale, WHITE)
        colour = AMBER if self._hands(time_s) else GREEN
        notes = "; ".join(self.notes_at(time_s))
        _write(strip, notes, (left, round(52 * scale)), 0.5 * scale, colour)
        return strip


def write_video(film: Film, path: Path) -> int:
    """Write the video as H.264; return its number of frames."""
    from crane_x7_vla_rl.mp4 import write_mp4

    pictures = (_even(film.at(time_s)) for time_s in film.times(VIDEO_HZ))
    return write_mp4(str(path), pictures, VIDEO_HZ, {"preset": "veryfast", "crf": "23"})


def write_gif(film: Film, path: Path) -> None:
    """Write the video as a small GIF for a web page."""
    from PIL import Image as Pillow

    small = list(_narrow(film))
    if not small:
        return
    # One palette for all frames keeps unchanged pixels equal and the file small.
    palette = Pillow.fromarray(_telling_colours(small)).quantize(GIF_COLOURS)
    none = Pillow.Dither.NONE
    first, *rest = (
        Pillow.fromarray(picture).quantize(palette=palette, dither=none) for picture in small
    )
    first.save(path, save_all=True, append_images=rest, duration=1000 // GIF_HZ, loop=0)


def _telling_colours(pictures: Sequence[Image]) -> Image:
    """Return the colours of the images in one row, the rare ones nearly as often as those of table
    and wall, because viewers look at the cubes and the text."""
    some = np.concatenate(pictures[:: max(1, len(pictures) // PALETTE_PICTURES)])
    coarse = some.reshape(-1, 3).astype(np.int64) // 4
    counts = np.bincount(coarse @ (64**2, 64, 1), minlength=64**3)
    colours = np.stack(np.unravel_index(np.arange(64**3), (64, 64, 64)), axis=1)
    times = np.where(counts >= PALETTE_PIXELS, counts**0.25, 0).astype(int)
    row: Image = np.repeat(colours * 4 + 2, times, axis=0)[None].astype(np.uint8)
    return row


def write_strip(film: Film, times_s: Sequence[float], path: Path, width: int = 1440) -> None:
    """Write the frames of `times_s` side by side as a PNG."""
    if not times_s:
        return
    joined = np.concatenate([film.at(time_s) for time_s in times_s], axis=1)
    ok, png = cv2.imencode(".png", _resized(joined, width)[:, :, ::-1])
    assert ok
    path.write_bytes(png.tobytes())


def _narrow(film: Film) -> Iterator[Image]:
    for time_s in film.times(GIF_HZ):
        yield _resized(film.at(time_s), GIF_WIDTH)


def _resized(picture: Image, width: int) -> Image:
    height = round(picture.shape[0] * width / picture.shape[1])
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _even(picture: Image) -> Image:
    """Return the image with even width and height, which H.264 needs."""
    return picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]


def _write(
    picture: Image, text: str, at: tuple[int, int], size: float, colour: tuple[int, int, int]
) -> None:
    """Write text; OpenCV's own font contains Japanese characters."""
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)
