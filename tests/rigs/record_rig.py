"""Events of a synthetic robot whose images and joints say when they were taken.

`python record_rig.py FOLDER EVERY` records again and again, killed at one of its file operations
after another: see `main`.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from crane_x7_remote.record.events import (
    BASE,
    Commanded,
    Decided,
    Event,
    Measured,
    Ordered,
    Picture,
)
from crane_x7_remote.record.recorder import Recorder, RecorderOptions
from crane_x7_remote.record.take import ActionSource
from crane_x7_remote.record.writing import EpisodeWriter
from crane_x7_remote.rosbridge.frames import EncodedFrame
from crane_x7_remote.rosbridge.messages import StampedJoints
from crane_x7_vla_rl.data.lerobot import writer as lerobot_writer
from crane_x7_vla_rl.data.rosbags.align import Command
from crane_x7_vla_rl.types import Array, JointState

CAMERA, JOINTS, LEADER = "/camera/compressed", "/joint_states", "/leader/joint_states"
SIZE = (32, 24)
START_S = 1000.0
"""On the robot's clock; arrivals are 900 s behind."""
DELAY_S = 0.01
MIDDLE_RAD = np.array([-0.5] * 7 + [0.5])
SWING_RAD = np.array([0.3, 0.2, -0.3, -0.2, 0.3, 0.1, -0.1, 0.2])
TASK = "pick up the red cube"


def position(time_s: float, offset: float = 0.0) -> Array:
    """The joints at a time of the robot's clock."""
    return MIDDLE_RAD + offset + SWING_RAD * np.sin(0.5 * (time_s - START_S))


def picture_bytes(number: int, size: tuple[int, int] = SIZE) -> bytes:
    """A JPEG whose grey level is twice `number`."""
    width, height = size
    return cv2.imencode(".jpg", np.full((height, width, 3), 2 * (number % 120), np.uint8))[
        1
    ].tobytes()


def picture(time_s: float, number: int, camera: str = BASE, **more: object) -> Picture:
    size = more.get("size", SIZE)
    arrival_s = more.get("arrival_s", time_s - 900 + DELAY_S)
    stamp_s = more.get("stamp_s", time_s)
    return Picture(camera, EncodedFrame(picture_bytes(number, size), "jpeg", stamp_s, arrival_s))  # type: ignore[arg-type]


def measured(time_s: float, arm: str = "robot", **more: object) -> Measured:
    state = JointState(position(time_s, 0.2 if arm == "leader" else 0.0), np.zeros(8))
    stamp_s, arrival_s = more.get("stamp_s", time_s), more.get("arrival_s", time_s - 900 + DELAY_S)
    return Measured(arm, StampedJoints(state, stamp_s, arrival_s))  # type: ignore[arg-type]


def commanded(
    time_s: float,
    target: Array,
    joints: Sequence[int] = range(8),
    session: str | None = None,
    is_prediction: bool = False,
) -> Commanded:
    """A trajectory that is at `target` after 0.1 s, and stays."""
    command = Command(time_s, tuple(joints), np.array([0.1]), np.array([target[list(joints)]]))
    return Commanded(command, time_s - 900 + DELAY_S, session, is_prediction)


def decided(time_s: float, target: Array | None, intervention: bool = False) -> Decided:
    return Decided(time_s, time_s - 900 + DELAY_S, target, intervention)


def stream(
    seconds: float,
    begin_s: float = START_S,
    camera_hz: float = 30.0,
    joints_hz: float = 100.0,
    cameras: Sequence[str] = (BASE,),
    arms: Sequence[str] = ("robot",),
) -> Iterator[Event]:
    """Images and joints in the order of their time; image k of a camera has number k."""
    events: list[tuple[float, Event]] = []
    for order, camera in enumerate(cameras):
        for k in range(round(seconds * camera_hz)):
            at_s = begin_s + (k + 0.1 * order) / camera_hz
            events.append((at_s, picture(at_s, k, camera)))
    for arm in arms:
        for k in range(-10, round(seconds * joints_hz) + 20):
            at_s = begin_s + k / joints_hz
            events.append((at_s, measured(at_s, arm)))
    return (event for _, event in sorted(events, key=lambda each: each[0]))


def options(folder: Path, action: ActionSource = "next", **more: object) -> RecorderOptions:
    values: dict[str, object] = {"instruction": TASK, **more}
    return RecorderOptions(folder, 10.0, {BASE: CAMERA}, action, JOINTS, LEADER, **values)  # type: ignore[arg-type]


EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
EPISODES = 3


def record(folder: Path, recordings: Sequence[Sequence[Event]], moment: int) -> None:
    """Record an episode of each, killed at the `moment`-th file operation in the folder."""
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event in EVENTS and str(folder) in str(arguments[0]):
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    kept = os.open(folder / "kept", os.O_WRONLY | os.O_CREAT)
    sys.addaudithook(hook)
    writer = EpisodeWriter(folder, resume=False, kept=0, observe=lambda number, _: os.write(
        kept, f"{number}\n".encode()))  # fmt: skip
    recorder = Recorder(options(folder), writer, lambda _: None)
    for events in recordings:
        for event in events[:10]:
            recorder.handle(event)
        recorder.handle(Ordered("start", "test"))
        for event in events[10:]:
            recorder.handle(event)
        recorder.handle(Ordered("stop", "test"))
    writer.close()


def main(root: Path, every: int) -> int:
    """Run k dies at its (k·every)-th file operation, in ROOT/k; ends with one that is through."""
    lerobot_writer.GROUP_EPISODES = 2
    os.fsync = lambda _: None  # a killed process loses nothing of what the kernel has
    recordings = [
        list(stream(0.4, START_S + 10 * number, camera_hz=10, joints_hz=20))
        for number in range(EPISODES)
    ]
    for k in range(1, 1000):
        folder = root / str(k)
        folder.mkdir(parents=True)
        child = os.fork()
        if child == 0:
            record(folder, recordings, k * every)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return k - 1
    raise SystemExit("it never came through")


def drain(events: queue.SimpleQueue[Event]) -> list[Event]:
    """All events in a queue."""
    found = []
    while not events.empty():
        found.append(events.get())
    return found


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), int(sys.argv[2])))
