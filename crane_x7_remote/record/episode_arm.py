"""A recorded episode as a robot that a loop can be fed with. `Episode` → an `Arm` of the sim robot.

Its joints and images are the recorded ones, at their times, whatever it is commanded: run the loop
with --dry-run. Time begins when a client first gets an image.
"""

from __future__ import annotations

import threading
from typing import Any, Final

import numpy as np
import simplejpeg

from crane_x7_remote.record.events import BASE
from crane_x7_vla_rl.data.episode import Episode
from crane_x7_vla_rl.robot import DOF
from crane_x7_vla_rl.types import WRIST, Array, JointState

QUALITY: Final = 95


class EpisodeArm:
    """Plays one episode, then stands still at its end."""

    def __init__(self, episode: Episode, period_s: float, ended: threading.Event) -> None:
        """`ended` is set after the last frame."""
        self.period_s = period_s
        self._episode, self._ended = episode, ended
        self._views = {name: episode.seen_by(name) for name in episode.others} | {BASE: episode}
        self._elapsed_s = 0.0
        self._has_begun = False
        self._times_s = np.arange(len(episode)) / episode.fps
        self._encoded: dict[str, tuple[int, bytes]] = {}
        """Camera → the number of its newest frame, and that as a JPEG."""

    def step(self, target_rad: Array) -> None:
        """Let time pass; the recorded arm takes no targets."""
        del target_rad
        if self._has_begun:
            self._elapsed_s += self.period_s
            if self._elapsed_s > self._times_s[-1] + 1 / self._episode.fps:
                self._ended.set()

    def joints(self) -> JointState:
        """Return the recorded joints, interpolated."""
        state, times_s = self._episode.state, self._times_s
        now_s, span_s = self._elapsed_s, self.period_s
        position = [np.interp(now_s, times_s, state[:, joint]) for joint in range(DOF)]
        before = [np.interp(now_s - span_s, times_s, state[:, joint]) for joint in range(DOF)]
        return JointState(np.array(position), (np.array(position) - before) / span_s)

    def jpeg(self) -> bytes:
        """Return the newest frame; the first call starts the episode."""
        self._has_begun = True
        return self._jpeg(BASE)

    def wrist_jpeg(self) -> bytes:
        """Return the newest frame of the wrist camera; only for an episode that has one."""
        return self._jpeg(WRIST)

    def _jpeg(self, camera: str) -> bytes:
        # A step may end a rounding error before its frame.
        now = min(int(self._elapsed_s * self._episode.fps + 1e-6), len(self._episode) - 1)
        number, content = self._encoded.get(camera, (-1, b""))
        if number != now:
            image = np.ascontiguousarray(self._views[camera].image(now))
            content = simplejpeg.encode_jpeg(image, quality=QUALITY, colorsubsampling="444")
            self._encoded[camera] = now, content
        return content

    def view_jpeg(self) -> bytes:
        """Return the same image: the recording has no other."""
        return self.jpeg()

    def scene(self) -> dict[str, dict[str, Any]]:
        """Return nothing: a recording knows no cubes."""
        return {}

    def put_back(self, colour: str) -> None:
        """Has no cubes."""

    def arrange(self, seed: int) -> None:
        """Its scene is the recorded one."""

    def close(self) -> None:
        """Nothing to free."""
