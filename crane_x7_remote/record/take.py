"""One episode being recorded. Streams of different rates → `Episode` at a fixed rate.

Frame k shows the newest image of each camera at t_k = t_0 + k / fps; its state is the joints
interpolated to the stamp of the base camera's image, its action what was commanded one period after
that stamp, as a policy's first step is due one period after its frame. Times are those of the
robot's clock, or of arrival where a stream has no usable stamps.

Legend: T frames, 8 joints in the order of robot.JOINT_NAMES, rad.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from crane_x7_remote.record.events import BASE, Commanded, Decided, Measured, Picture
from crane_x7_remote.record.pace import Lost, Pace
from crane_x7_remote.record.spool import Place, Spool, SpooledImages
from crane_x7_remote.rosbridge import frames
from crane_x7_remote.rosbridge.frames import EncodedFrame
from crane_x7_remote.rosbridge.messages import MessageError, StampedJoints
from crane_x7_vla_rl.data.episode import Episode
from crane_x7_vla_rl.data.rosbags.align import Command, commanded
from crane_x7_vla_rl.types import Array

ActionSource = Literal["commands", "leader", "next", "policy"]
EARLY: Final = 0.25
"""Share of a period that an image may be newer than its frame's time: a camera at exactly the rate
of the episode must not alternate between two images and none because its stamps jitter."""
FEWEST_FRAMES: Final = 2
LOW: Final = 0.9
"""Share of frames that repeat no image, below which the rate counts as not kept."""
STILL_S: Final = 0.5
STILL_RAD: Final = 0.01
"""An arm that no joint moves further within STILL_S before and after a frame stands still."""
OWN_TOPIC_S: Final = 5.0
"""A loop's trajectories on the arm's topic are skipped if it sent one with all 8 joints this
recently."""


class TooShort(Exception):
    """The episode has too few frames; says what is missing."""


@dataclass(frozen=True)
class TakePlan:
    """What an episode is made of."""

    fps: float
    cameras: Mapping[str, str]
    """Name → topic; the base camera is among them."""
    action: ActionSource
    joint_states_topic: str
    leader_topic: str = ""
    gap_s: float = 0.5
    """Longest time without an image, joints or leader before the episode ends."""
    is_stamped: bool = True
    """Whether times are stamps of the robot; False: times of arrival."""
    ahead_s: float = 0.0
    """How far the robot's stamps are ahead of our clock, for commands without a stamp."""


@dataclass
class _Camera:
    """One camera's images on the grid."""

    name: str
    pace: Pace
    size: tuple[int, int] | None = None
    """(width, height) of its images."""
    newest: EncodedFrame | None = None
    newest_s: float = 0.0
    place: Place | None = None
    """Where the newest image is in the file, once a frame has needed it."""
    times_s: list[float] = field(default_factory=list)
    """(T,) time of each frame's image."""
    places: list[Place] = field(default_factory=list)
    unreadable: int = 0


@dataclass(frozen=True)
class TakeReport:
    """What a finished episode is like."""

    frames: int
    seconds: float
    low: tuple[str, ...]
    """Rates that were not kept, with numbers."""
    left_out: int = 0
    """Frames in which a policy's loop held and nobody moved the arm."""


class Take:
    """Collects one episode; called by one thread."""

    def __init__(self, plan: TakePlan, spool: Spool) -> None:
        self.plan, self._spool = plan, spool
        gap_s = plan.gap_s
        self._cameras = {
            name: _Camera(name, Pace(f"camera {name} ({topic})", gap_s))
            for name, topic in plan.cameras.items()
        }
        self._arms = {"robot": Pace(plan.joint_states_topic, gap_s)}
        if plan.action == "leader":
            self._arms["leader"] = Pace(f"leader ({plan.leader_topic})", gap_s)
        self._rows: dict[str, list[Array]] = {name: [] for name in self._arms}
        self._commands: list[Command] = []
        self._own_topic_s: dict[str | None, float] = {}
        self._decided: list[Decided] = []
        self._start_s: float | None = None
        """Time of frame 0: the first image of the base camera with joints before it."""

    @property
    def frames(self) -> int:
        """Frames that every camera has so far."""
        return min(len(camera.places) for camera in self._cameras.values())

    @property
    def seconds(self) -> float:
        """Length so far."""
        return self.frames / self.plan.fps

    # --- in --------------------------------------------------------------------------------------

    def picture(self, event: Picture) -> None:
        """Take an image; raises Lost, and OSError if the disk is full."""
        camera = self._cameras[event.camera]
        time_s = self._time_s(event.frame.stamp_s, event.frame.arrival_s)
        try:
            height, width, _ = frames.decode_image(event.frame).shape
        except MessageError:
            camera.unreadable += 1
            return
        if not self._is_news(camera.pace, time_s, event.frame.arrival_s):
            return
        if camera.size not in (None, (width, height)):
            raise Lost(f"{camera.pace.name}: its images are now {width}×{height} pixels")
        camera.size = width, height
        if self._start_s is None and event.camera == BASE and self._may_begin(time_s):
            self._start_s = time_s
        self._fill(camera, time_s)
        camera.newest, camera.newest_s, camera.place = event.frame, time_s, None

    def measured(self, event: Measured) -> None:
        """Take joints; raises Lost."""
        pace, joints = self._arms.get(event.arm), event.joints
        if pace is None or not np.isfinite(joints.state.position_rad).all():
            return
        rows = self._rows[event.arm]
        if self._is_news(pace, self._time_s(joints.stamp_s, joints.arrival_s), joints.arrival_s):
            del rows[: len(rows) + 1 - len(pace.times_s)]
            rows.append(joints.state.position_rad)

    def command(self, event: Commanded) -> None:
        """Take a trajectory, unless the same one comes with all joints on another topic."""
        if event.session is not None and event.is_prediction:
            self._own_topic_s[event.session] = event.arrival_s
        elif event.session is not None:
            last_s = self._own_topic_s.get(event.session, -np.inf)
            if event.arrival_s - last_s < OWN_TOPIC_S:
                return
        stamp_s = event.command.time_s or event.arrival_s + self.plan.ahead_s
        time_s = self._time_s(stamp_s, event.arrival_s)
        command = event.command
        self._commands.append(Command(time_s, command.joints, command.due_s, command.position_rad))

    def decided(self, event: Decided) -> None:
        """Take what the policy's loop did."""
        self._decided.append(event)

    def check(self, now_s: float) -> None:
        """Raise Lost if a stream has stopped."""
        for pace in (*(camera.pace for camera in self._cameras.values()), *self._arms.values()):
            pace.check(now_s)

    def _time_s(self, stamp_s: float, arrival_s: float) -> float:
        return stamp_s if self.plan.is_stamped else arrival_s

    def _is_news(self, pace: Pace, time_s: float, arrival_s: float) -> bool:
        """Note a message; raises Lost for a gap or step, of which only frames make an end."""
        try:
            return pace.take(time_s, arrival_s)
        except Lost:
            if self._start_s is not None:
                raise
            pace.times_s.clear()
            return pace.take(time_s, arrival_s)

    def _may_begin(self, time_s: float) -> bool:
        """Whether joints, and images of the other cameras, are known for an image of the base."""
        others = [camera for name, camera in self._cameras.items() if name != BASE]
        return all(
            pace.times_s and pace.times_s[0] <= time_s for pace in self._arms.values()
        ) and all(
            camera.newest is not None and time_s - camera.newest_s <= self.plan.gap_s
            for camera in others
        )

    def _fill(self, camera: _Camera, until_s: float) -> None:
        """Give the frames before an image at `until_s` the newest image so far."""
        if self._start_s is None or camera.newest is None:
            return
        period_s = 1 / self.plan.fps
        while self._start_s + (len(camera.places) + EARLY) * period_s < until_s:
            if camera.place is None:
                camera.place = self._spool.put(camera.newest.image_bytes)
            camera.places.append(camera.place)
            camera.times_s.append(camera.newest_s)

    # --- out -------------------------------------------------------------------------------------

    def episode(
        self, instruction: str, source: str, success: bool | None = None
    ) -> tuple[Episode, TakeReport]:
        """Return the episode so far; raises TooShort.

        Of a policy's episode, frames in which its loop held and nobody moved the arm are left out:
        whatever is trained on them would learn to stand still.
        """
        count = self._whole_frames()
        every = np.array(self._cameras[BASE].times_s[:count])  # (count,)
        kept = np.flatnonzero(~self._idle(every))  # (T,)
        if len(kept) < FEWEST_FRAMES:
            raise TooShort(f"nobody moved the arm in {count} frames")
        stamps = every[kept]  # (T,)
        images = {
            name: SpooledImages(self._spool, tuple(camera.places[row] for row in kept))
            for name, camera in self._cameras.items()
        }
        episode = Episode(
            images=images.pop(BASE),
            state=self._at("robot", stamps).astype(np.float32),
            action=self._actions(stamps, stamps + 1 / self.plan.fps).astype(np.float32),
            instruction=instruction,
            fps=self.plan.fps,
            success=success,
            source=source,
            others=images,
            intervention=self._interventions(stamps),
        )
        report = TakeReport(
            len(kept), len(kept) / self.plan.fps, self._low(count), count - len(kept)
        )
        return episode, report

    def _whole_frames(self) -> int:
        """Return the number of frames whose action is known; raises TooShort."""
        last_s = min((pace.times_s[-1] if pace.times_s else -np.inf)
                     for pace in self._arms.values())  # fmt: skip
        known = [at + 1 / self.plan.fps <= last_s for at in self._cameras[BASE].times_s]
        count = min(self.frames, known.index(False) if False in known else len(known))
        if count >= FEWEST_FRAMES:
            return count
        for name, camera in self._cameras.items():
            if len(camera.places) < FEWEST_FRAMES:
                topic = self.plan.cameras[name]
                seen = len(camera.pace.times_s)
                unreadable = f", {camera.unreadable} unreadable" if camera.unreadable else ""
                raise TooShort(f"{seen} images on {topic}{unreadable}")
        raise TooShort(f"joints for {count} frames")

    def _at(self, arm: str, times_s: Array) -> Array:
        """Return (T, 8): an arm's joints, interpolated."""
        rows, known_s = np.array(self._rows[arm]), np.array(self._arms[arm].times_s)
        columns = [np.interp(times_s, known_s, rows[:, joint]) for joint in range(rows.shape[1])]
        return np.stack(columns, axis=1)

    def _actions(self, stamps_s: Array, due_s: Array) -> Array:
        """Return (T, 8): the targets one period after each frame."""
        if self.plan.action == "leader":
            return self._at("leader", due_s)
        measured = self._at("robot", due_s)
        if self.plan.action == "commands":
            known_s, rows = np.array(self._arms["robot"].times_s), np.array(self._rows["robot"])
            ordered = sorted(self._commands, key=lambda command: command.time_s)
            return commanded(ordered, due_s, measured, known_s, rows)
        for row, decided in enumerate(self._decisions(stamps_s)):
            if decided is not None and decided.target_rad is not None:
                measured[row] = decided.target_rad
        return measured

    def _idle(self, stamps_s: Array) -> npt.NDArray[np.bool_]:
        """Return (T,) in which frames nobody drove: pauses, and other holds while the arm stood."""
        if self.plan.action != "policy":
            return np.zeros(len(stamps_s), bool)
        before, now, after = (self._at("robot", stamps_s + at) for at in (-STILL_S, 0.0, STILL_S))
        moved_rad = np.maximum(np.abs(now - before), np.abs(after - now)).max(axis=1)
        found = self._decisions(stamps_s)
        held = np.array([each is not None and each.target_rad is None for each in found])
        paused = np.array([
            each is not None and each.is_pause and not each.intervention for each in found
        ])  # fmt: skip
        idle: npt.NDArray[np.bool_] = held & (paused | (moved_rad < STILL_RAD))
        return idle

    def _interventions(self, stamps_s: Array) -> npt.NDArray[np.bool_]:
        found = self._decisions(stamps_s)
        return np.array([decided is not None and decided.intervention for decided in found])

    def _decisions(self, stamps_s: Array) -> Sequence[Decided | None]:
        """Return what the loop decided for each frame's image, or for the one before it."""
        times = [self._time_s(each.stamp_s, each.arrival_s) for each in self._decided]
        places = np.searchsorted(times, stamps_s, "right") - 1
        return [self._decided[place] if place >= 0 else None for place in places]

    def _low(self, count: int) -> tuple[str, ...]:
        """Return in words which rates were too low for `count` frames."""
        wanted, found = self.plan.fps, []
        for name, camera in self._cameras.items():
            distinct = len(set(camera.places[:count]))
            if distinct < LOW * count:
                found.append(
                    f"camera {name} gave {distinct * wanted / count:.1f} images/s, wanted"
                    f" {wanted:g}: {count - distinct} of {count} frames repeat an image"
                )
        start_s, end_s = self._cameras[BASE].times_s[0], self._cameras[BASE].times_s[count - 1]
        for arm, pace in self._arms.items():
            inside = [at for at in pace.times_s if start_s <= at <= end_s]
            rate = len(inside) / max(end_s - start_s, 1 / wanted)
            if rate < LOW * wanted:
                found.append(f"joints of the {arm} came at {rate:.1f}/s, wanted {wanted:g}")
        return tuple(found)


def lead_s(joints: StampedJoints) -> float:
    """Return how far a stamp is ahead of our clock."""
    return joints.stamp_s - joints.arrival_s


__all__ = ["ActionSource", "Lost", "Take", "TakePlan", "TakeReport", "TooShort", "lead_s"]
