"""The page of a loop that started this process. Its feed on standard input → `Board`."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import IO, Any, Final

import numpy as np

from crane_x7_remote.dashboard import gripper_path, pictures, sections
from crane_x7_remote.dashboard.board import Board, TickMark
from crane_x7_remote.inference.feed import FeedError, read_messages
from crane_x7_remote.rosbridge.messages import MessageError
from crane_x7_vla_rl.camera_pose import CameraPose, CameraPoseError

logger = logging.getLogger(__name__)

RATE_S: Final = 3.0
"""The rate is that of the last seconds; the loop's own figure is since its start."""
MOST_S: Final = 60.0
"""A frame that seems older has a clock that is wrong."""


class FeedReader:
    """Reads the feed on its own thread until it ends."""

    def __init__(
        self,
        board: Board,
        pose: Callable[[], CameraPose | None],
        ended: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`pose` gives the camera's pose; `ended` is called on the reader's thread at the end.
        `clock` is that of the loop's ticks."""
        self._board = board
        self._pose = pose
        self._ended = ended
        self._clock = clock
        self._loop: dict[str, Any] = {"state": "starting"}
        self._address = ""
        self._at_s: deque[float] = deque()
        self._path: Mapping[str, Any] | None = None
        self._size: tuple[int, int] | None = None

    def start(self, stream: IO[bytes], first: Mapping[str, Any]) -> None:
        """Read `stream`, whose message `first` has been read already."""
        self._take(first)
        threading.Thread(target=self._read, args=(stream,), name="feed", daemon=True).start()

    def _read(self, stream: IO[bytes]) -> None:
        try:
            for message in read_messages(stream):
                self._take(message)
        except FeedError as error:
            logger.warning("%s", error)
        self._loop = {**self._loop, "state": "ended", "hold": None}
        self._board.put(loop=self._loop)
        self._ended()

    def _take(self, message: Mapping[str, Any]) -> None:
        kind = message["kind"]
        if kind == "hello":
            self._hello(message)
        elif kind == "tick":
            self._tick(message)
        elif kind == "second":
            self._second(message["metrics"])

    def _hello(self, message: Mapping[str, Any]) -> None:
        control = message["control"]
        self._address = f"{control['rosbridge_host']}:{control['rosbridge_port']}"
        self._loop = {
            "session": message["session"],
            "policy": message["policy"],
            "dry_run": message["dry_run"],
            "instruction": message["instruction"],
            "wanted_hz": message["rate_hz"],
            "rate_hz": None,
            "state": "starting",
            "hold": None,
            "detail": None,
            "trajectories": 0,
        }
        self._board.put(loop=self._loop)

    def _tick(self, message: Mapping[str, Any]) -> None:
        board, hold, policy_s = self._board, message["hold"], message["policy_s"]
        reason = None if hold is None else sections.words(hold["reason"])
        policy_ms = None if policy_s is None else round(policy_s * 1e3, 1)
        board.mark(TickMark(message["number"], policy_ms, reason))
        if message["jpeg"] is not None:
            self._picture(message["jpeg"], self._age_s(message, "frame_stamp_s"))
        if message.get("wrist_jpeg") is not None:
            age_s = self._age_s(message, "wrist_stamp_s")
            self._board.put_wrist_picture(message["wrist_jpeg"], age_s)
        self._loop = {
            **self._loop,
            "instruction": message["instruction"],
            "rate_hz": self._rate_hz(message["at_s"]),
            "state": "hold" if hold else "dry run" if self._loop["dry_run"] else "driving",
            "hold": reason,
            "detail": None if hold is None else hold["detail"],
        }
        if message["path"] is not None:
            self._path = message["path"]
        board.put(
            loop=self._loop,
            joints=sections.joints(message["position_rad"], message["target_rad"]),
            path=self._drawn(message),
        )

    def _picture(self, content: bytes, age_s: float) -> None:
        try:
            self._size = pictures.size(content)
        except MessageError:
            return  # the loop holds and says why
        self._board.put_picture(content, age_s)

    def _age_s(self, message: Mapping[str, Any], stamp: str) -> float:
        """Return the age of a tick's frame now: at the tick by the robot's clock, and since.

        `stamp` is the key of its stamp."""
        since_s = self._clock() - message["at_s"]
        stamp_s, robot_s = message[stamp], message["robot_s"]
        at_tick_s = 0.0 if stamp_s is None or robot_s is None else robot_s - stamp_s
        return float(min(MOST_S, max(0.0, since_s)) + min(MOST_S, max(0.0, at_tick_s)))

    def _rate_hz(self, at_s: float) -> float | None:
        times = self._at_s
        times.append(at_s)
        while times[0] < at_s - RATE_S:
            times.popleft()
        if len(times) < 2 or times[-1] <= times[0]:
            return None
        return round((len(times) - 1) / (times[-1] - times[0]), 2)

    def _drawn(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return the path and the gripper in the image, or why they are not drawn."""
        pose, path = self._pose(), self._path
        nothing: dict[str, Any] = {"points": [], "gripper": None}
        if pose is None:
            return {**nothing, "note": gripper_path.UNKNOWN}
        if self._size is None or message["position_rad"] is None:
            return {**nothing, "note": None}
        try:
            gripper = gripper_path.in_image([message["position_rad"]], pose, self._size)
            points: list[list[float]] = []
            if path is not None and message["robot_s"] is not None:
                left_rad = gripper_path.ahead(
                    np.array(path["time_from_start_s"]),
                    np.array(path["position_rad"]),
                    message["robot_s"] - path["stamp_s"],
                )
                points = [] if left_rad is None else gripper_path.in_image(
                    left_rad, pose, self._size
                )  # fmt: skip
        except CameraPoseError as error:
            return {**nothing, "note": f"path not drawn: {error}"}
        return {"points": points, "gripper": gripper[0] if gripper else None, "note": None}

    def _second(self, metrics: Mapping[str, Any]) -> None:
        self._loop = {**self._loop, "trajectories": metrics.get("trajectories", 0)}
        lateness = metrics.get("lateness_ms") or {}
        self._board.put(
            loop=self._loop,
            stages=sections.stages(metrics),
            lateness={name: lateness.get(name) for name in ("p50", "p99", "max")}
            | {"skipped": metrics.get("skipped_ticks"), "limit": metrics.get("rate_limit")},
            holds=sections.holds(metrics),
            link=sections.link(metrics.get("link") or {}, self._address),
        )
        self._board.metrics = metrics
