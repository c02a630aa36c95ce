"""The wrist camera, for a policy that wants it. Both cameras' newest frames → images or `Hold`.

The base camera paces the loop and carries the stamp of a trajectory; the wrist camera's newest
frame goes with it if it is recent and was taken at about the same time.
"""

from __future__ import annotations

from collections.abc import Callable

from crane_x7_remote.inference.config import LoopConfig
from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_remote.inference.link.ports import RobotClient
from crane_x7_remote.rosbridge import frames, messages
from crane_x7_remote.rosbridge.frames import EncodedFrame
from crane_x7_vla_rl.policies.base import Policy, more_cameras
from crane_x7_vla_rl.types import WRIST, Image


class WristCamera:
    """Checks and decodes the wrist camera's frames; does nothing for a policy that wants none."""

    def __init__(
        self, client: RobotClient, policy: Policy, config: LoopConfig, clock: Callable[[], float]
    ) -> None:
        """`clock` gives monotonic seconds."""
        self._client = client
        self._is_wanted = WRIST in more_cameras(policy)
        self._topic = config.wrist_camera_topic
        self._limit_s = config.max_frame_age_s
        self._clock = clock

    def take(self, base: EncodedFrame) -> EncodedFrame | Hold | None:
        """Return the frame that goes with the base camera's, or why there is none; None if the
        policy does not want one."""
        if not self._is_wanted:
            return None
        frame = self._client.wrist_frame()
        if frame is None:
            because = self._client.link.no_wrist_frame_because
            return self._hold(
                HoldReason.NO_FRAME,
                f"no frame received yet{'' if because is None else f': {because}'}; behind a guard,"
                " set WRIST_CAMERA_TOPIC for the guard, too",
            )
        return self._check(frame, base) or frame

    def newest(self) -> EncodedFrame | None:
        """Return the newest frame, for those who watch the loop; None without a wrist camera."""
        return self._client.wrist_frame() if self._topic else None

    def images(self, frame: EncodedFrame | None) -> dict[str, Image] | Hold:
        """Return `Observation.more_images` of the frame that `take` returned."""
        if frame is None:
            return {}
        try:
            return {WRIST: frames.decode_image(frame)}
        except messages.MessageError as error:
            return self._hold(HoldReason.FRAME_UNREADABLE, str(error))

    def _check(self, frame: EncodedFrame, base: EncodedFrame) -> Hold | None:
        """Compare stamps only with the base camera's: both must come from one clock."""
        limit_s = self._limit_s
        if not frame.stamp_s > 0:  # NaN, too
            return self._hold(
                HoldReason.FRAME_UNSTAMPED,
                f"frame's header stamp is {frame.stamp_s}, expected the robot's time",
            )
        ahead_s = frame.stamp_s - base.stamp_s
        if ahead_s > limit_s:
            return self._hold(
                HoldReason.CLOCKS_DIFFER,
                f"frame is stamped {ahead_s:.3f} s after the base camera's, expected at most"
                f" {limit_s:g} s (MAX_FRAME_AGE); both cameras must share a clock",
            )
        age_s = self._client.frame_age_s(frame, self._clock())
        if age_s <= limit_s and ahead_s >= -limit_s:
            return None
        because = self._client.link.no_wrist_frame_because
        return self._hold(
            HoldReason.FRAME_STALE,
            f"frame is {age_s:.3f} s old and stamped {-ahead_s:.3f} s before the base camera's,"
            f" expected at most {limit_s:g} s (MAX_FRAME_AGE)"
            f"{'' if because is None else f': {because}'}",
        )

    def _hold(self, reason: HoldReason, detail: str) -> Hold:
        return Hold(reason, f"wrist camera on {self._topic or '(no topic)'}: {detail}")
