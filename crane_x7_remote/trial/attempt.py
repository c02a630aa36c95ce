"""One attempt of the policy: times, holds, interventions and images, until it is judged.

Ticks arrive on the loop's thread; the rest is called on the session's.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

import cv2
import simplejpeg

from crane_x7_remote.inference.feed import Tick
from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_remote.rosbridge import frames
from crane_x7_remote.rosbridge.frames import EncodedFrame
from crane_x7_remote.rosbridge.messages import MessageError
from crane_x7_remote.trial.driver import Mode
from crane_x7_remote.trial.results import Episode, Intervention, Result
from crane_x7_vla_rl.robot import ARM_DOF

PICTURE_S: Final = 1.0
"""Time between two images of the strip."""
PICTURE_WIDTH: Final = 240
MOST_PICTURES: Final = 60
"""With more, every second one is dropped and the time between them doubles."""
QUALITY: Final = 75


class TickWatch:
    """Counts what the loop does while an attempt runs; `note` never waits for long."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holds: Counter[str] = Counter()
        self.gripper_rad: float | None = None
        """The last target, which keeps what the gripper holds; None if a person's hands may have
        moved it."""

    def note(self, tick: Tick, mode: Mode) -> None:
        """Take a tick of `mode`; called on the loop's thread."""
        outcome = tick.outcome
        if not isinstance(outcome, Hold):
            self.gripper_rad = float(outcome.target_rad[ARM_DOF])
        elif mode is Mode.REST and tick.intervention:
            self.gripper_rad = None
        elif mode is Mode.POLICY and outcome.reason is not HoldReason.PAUSED:
            with self._lock:
                self._holds[str(outcome.reason)] += 1

    def take_holds(self) -> dict[str, int]:
        """Return the holds since the last call, the frequent ones first."""
        with self._lock:
            holds, self._holds = self._holds, Counter()
        return dict(holds.most_common())


@dataclass(eq=False)
class Attempt:
    """One attempt, from the first moment of the policy; all times on the session's clock."""

    number: int
    begun_s: float
    started: str = field(
        default_factory=lambda: datetime.now().astimezone().isoformat("T", "seconds")
    )
    interventions: list[Intervention] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures: list[bytes] = field(default_factory=list)
    """Small JPEGs, one a second."""
    picture_s: float = PICTURE_S
    _driven_s: float = 0.0
    _driving_since_s: float | None = None
    _taken_over: tuple[Literal["leader", "hand"], float] | None = None
    _last: EncodedFrame | None = None
    _next_picture_s: float = 0.0

    def drive(self, now_s: float) -> None:
        """The policy drives from now on."""
        self._end_takeover(now_s)
        if self._driving_since_s is None:
            self._driving_since_s = now_s

    def rest(self, now_s: float) -> None:
        """The policy does not drive any more."""
        self._end_takeover(now_s)
        if self._driving_since_s is not None:
            self._driven_s += now_s - self._driving_since_s
            self._driving_since_s = None

    def take_over(self, kind: Literal["leader", "hand"], now_s: float) -> None:
        """A person drives from now on."""
        self.rest(now_s)
        self._taken_over = kind, now_s

    def driven_s(self, now_s: float) -> float:
        """Return how long the policy has driven."""
        since_s = self._driving_since_s
        return self._driven_s + (0.0 if since_s is None else now_s - since_s)

    def look(self, frame: EncodedFrame | None, now_s: float) -> None:
        """Keep a small copy of the newest image once a second; an unreadable one is skipped."""
        if frame is None or frame is self._last or now_s < self._next_picture_s:
            return
        self._last, self._next_picture_s = frame, now_s + self.picture_s
        try:
            self.pictures.append(_small(frame))
        except MessageError:
            return
        if len(self.pictures) > MOST_PICTURES:
            self.pictures = self.pictures[::2]
            self.picture_s *= 2

    def judged(
        self, result: Result, reason: str, now_s: float, holds: dict[str, int], retries: int
    ) -> Episode:
        """Return the episode as it goes into trial.json."""
        self.rest(now_s)
        return Episode(
            number=self.number,
            result=result,
            reason=reason,
            seconds=round(self._driven_s, 2),
            total_s=round(now_s - self.begun_s, 2),
            started=self.started,
            holds=holds,
            interventions=tuple(self.interventions),
            retries=retries,
            notes=tuple(self.notes),
            frames=len(self.pictures) if result == "failure" else 0,
        )

    def _end_takeover(self, now_s: float) -> None:
        if self._taken_over is None:
            return
        kind, since_s = self._taken_over
        self._taken_over = None
        self.interventions.append(
            Intervention(kind, round(since_s - self.begun_s, 2), round(now_s - since_s, 2))
        )


def _small(frame: EncodedFrame) -> bytes:
    image = frames.decode_image(frame)
    height = max(round(image.shape[0] * PICTURE_WIDTH / image.shape[1]), 1)
    small = cv2.resize(image, (PICTURE_WIDTH, height), interpolation=cv2.INTER_AREA)
    encoded: bytes = simplejpeg.encode_jpeg(small, quality=QUALITY, colorspace="RGB")
    return encoded
