"""How usable the dashboard is over a link: frames, their age, an instruction, a stop → figures.

Robot and guard run here, the loop with its dashboard is a process, and the viewers look through a
real `ssh -L` over a link of a given rate and delay. Each camera image shows its time in its first
rows, so its age at a viewer needs no other clock.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import simplejpeg
from chain_rig import Forward
from dashboard_rig import StreamMessage, post, receive, stream, viewers
from driving_rig import Driving
from slow_link import LinkShape, SlowLink
from sshd_rig import Sshd

from crane_x7_remote.sim_robot.arm import still_picture

BITS: Final = 20
"""Of an image's time in ms; 17 minutes."""
CAMERA_S: Final = 1 / 30
SETTLE_S: Final = 4.0
"""Until the images have the size that fits the link."""
STOPS: Final = 10


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    shape: LinkShape
    viewers: int


MOBILE: Final = LinkShape(mbit_s=2.0, round_trip_s=0.08)
CASES: Final = (
    Case("loopback", LinkShape(), 1),
    Case("2 Mbit/s, 80 ms", MOBILE, 1),
    Case("2 Mbit/s, 80 ms, 4 viewers", MOBILE, 4),
)


class TimedCamera:
    """Images of 640×480 pixels and 80 KB that show when they were made."""

    def __init__(self) -> None:
        self._pixels = simplejpeg.decode_jpeg(still_picture(640, 480)).copy()
        self._begun_s = time.monotonic()

    def jpeg(self) -> bytes:
        """Return the image of now."""
        now_ms = round((time.monotonic() - self._begun_s) * 1e3)
        bits = [(now_ms >> bit) & 1 for bit in range(BITS)]
        self._pixels[:48] = np.repeat(np.array(bits, np.uint8) * 255, 640 // BITS)[None, :, None]
        encoded: bytes = simplejpeg.encode_jpeg(self._pixels, quality=90, colorsubsampling="420")
        return encoded

    def age_s(self, jpeg: bytes) -> float:
        """Return how old an image of any size is."""
        row = simplejpeg.decode_jpeg(jpeg, colorspace="GRAY")[4, :, 0]
        middles = ((np.arange(BITS) + 0.5) * len(row) / BITS).astype(int)
        shown_ms = sum(1 << bit for bit, value in enumerate(row[middles]) if value > 127)
        return time.monotonic() - self._begun_s - shown_ms / 1e3


@contextmanager
def filmed(driving: Driving) -> Iterator[TimedCamera]:
    """Let the robot's camera show the time."""
    camera, ended = TimedCamera(), threading.Event()

    def film() -> None:
        while not ended.wait(CAMERA_S):
            driving.robot.picture = camera.jpeg()

    thread = threading.Thread(target=film, daemon=True)
    thread.start()
    try:
        yield camera
    finally:
        ended.set()
        thread.join(5)


def measure(folder: Path, case: Case, seconds: float) -> dict[str, Any]:
    """Return the figures of one case; `seconds` of watching, then instructions and stops."""
    folder.mkdir()
    with (
        Driving(folder) as driving,
        filmed(driving) as camera,
        Sshd(folder / "sshd") as sshd,
        SlowLink(sshd.port, case.shape) as link,
        Forward(sshd, link.port, driving.page, folder / "ssh.log") as ssh,
        viewers(ssh.port, case.viewers - 1),
    ):
        driving.wait_driving()
        with stream(ssh.port) as socket:
            watched(socket, SETTLE_S, camera)
            before = link.down.sent_bytes
            found = watched(socket, seconds, camera)
            found["mbit_s"] = round((link.down.sent_bytes - before) * 8e-6 / seconds, 2)
        with viewers(ssh.port, 1):
            time.sleep(SETTLE_S)
            found |= instructed(ssh.port) | stopped(ssh.port, driving)
    return {"link": case.name, "viewers": case.viewers, **found}


def watched(socket: Any, seconds: float, camera: TimedCamera) -> dict[str, Any]:
    """Watch as a browser does; return rate, size and age of the images."""
    ages_s: list[float] = []
    messages: list[StreamMessage] = []
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        message = receive(socket)
        if message.image:
            ages_s.append(camera.age_s(message.image))
            messages.append(message)
    width = simplejpeg.decode_jpeg_header(messages[-1].image)[1]
    sizes = [len(message.image) for message in messages]
    return {
        "frames_hz": round(len(messages) / seconds, 1),
        "width_px": width,
        "image_kb": round(statistics.median(sizes) / 1e3, 1),
        "age_s": spread(ages_s),
    }


def instructed(port: int) -> dict[str, Any]:
    """Return how long it takes until an operator reads that the loop has accepted a task."""

    def say(number: int) -> float:
        begun_s = time.monotonic()
        assert post(port, "/instruction", {"text": f"task {number}"}).json["ok"]
        return time.monotonic() - begun_s

    return {"instruction_s": spread([say(number) for number in range(STOPS)])}


def stopped(port: int, driving: Driving) -> dict[str, Any]:
    """Return the times from a stop to the guard's brake, and to the answer at the operator."""
    brakes_s: list[float] = []
    core = driving.guard.core
    core.stop = noting(core.stop, brakes_s)
    until_brake_s, until_answer_s = [], []
    for _ in range(STOPS):
        driving.wait_driving()
        pressed_s = time.monotonic()
        assert post(port, "/stop", {}).json["ok"]
        until_answer_s.append(time.monotonic() - pressed_s)
        until_brake_s.append(brakes_s[-1] - pressed_s)
        assert post(port, "/resume", {}).json["ok"]
    return {"stop_s": spread(until_brake_s), "stop_answer_s": spread(until_answer_s)}


def noting(act: Callable[..., Any], times_s: list[float]) -> Callable[..., Any]:
    """Return `act`, which also notes when it is called."""

    def noted(*values: Any) -> Any:
        times_s.append(time.monotonic())
        return act(*values)

    return noted


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median and largest value."""
    return {"p50": round(statistics.median(values), 3), "max": round(max(values), 3)}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the figures for a person."""
    lines = [
        f"{'link':28}{'images':>10}{'width':>8}{'used':>13}{'image age':>19}"
        f"{'instruction':>20}{'stop: brake':>20}{'answer':>20}"
    ]
    for row in rows:
        times = [f"{row[key]['p50']:.2f} max {row[key]['max']:.2f} s"
                 for key in ("age_s", "instruction_s", "stop_s", "stop_answer_s")]  # fmt: skip
        lines.append(
            f"{row['link']:28}{row['frames_hz']:>8.1f}/s{row['width_px']:>5} px"
            f"{row['mbit_s']:>6.2f} Mbit/s{times[0]:>19}" + "".join(f"{t:>20}" for t in times[1:])
        )
    return "\n".join(lines)
