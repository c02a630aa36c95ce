"""Drive a recorded episode on the arm, through the loop's checks. `Episode` → targets → a report.

The arm first moves slowly to the episode's first pose. Then each action is due when it was in the
recording, or later with `slower`. The first refusal that lasts ends the replay: the arm comes to
rest.

Legend: T frames, 8 joints in the order of robot.JOINT_NAMES, rad.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from crane_x7_remote.errors import RecordError
from crane_x7_remote.inference.hold import Hold
from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.safety import check_chunk
from crane_x7_remote.inference.targets import TargetDriver, TargetError
from crane_x7_vla_rl.data.episode import Episode
from crane_x7_vla_rl.robot import ARM_DOF, JOINT_NAMES
from crane_x7_vla_rl.types import ActionChunk, Array, JointState

APPROACH_RAD_S: Final = 0.4
"""Speed of the fastest joint on the way to the first pose."""
SETTLE_S: Final = 3.0
"""Time to reach the first pose after the path to it has ended."""
NEAR_RAD: Final = 0.05
"""The arm is at the first pose if no joint is further away; the gripper may hold something."""
SEND_HZ: Final = 30.0
LAST_S: Final = 0.5
"""The last target is held this long."""


@dataclass(frozen=True)
class ReplayOptions:
    """How an episode is driven."""

    slower: float = 1.0
    """How many times slower than recorded."""
    follow_s: float = 0.2
    """How far ahead targets are sent, as in inference.targets.TargetConfig."""


@dataclass(frozen=True)
class ReplayReport:
    """How the arm followed."""

    frames: int
    seconds: float
    worst_rad: float
    """Largest distance of an arm joint from the recording, at the same moment."""
    worst_joint: str
    mean_rad: float
    final_rad: float
    """Largest distance of an arm joint from the last action, at the end."""

    def as_json(self) -> dict[str, Any]:
        """Return it as an object."""
        return asdict(self)


def refusals(episode: Episode, start_rad: Array, limits: Limits) -> Iterator[str]:
    """Yield what the checks refuse of the actions, if each step is reached before the next.

    `start_rad` (8,) is where the arm stands: the way from there to the first pose is checked, too.
    """
    way = approach(start_rad, episode.state[0].astype(np.float64))
    steps = [("the way to the first pose", way), ("action", episode.action.astype(np.float64))]
    before = start_rad
    for what, rows in steps:
        for step, target in enumerate(rows):
            measured = JointState(before, np.zeros(len(before)))
            found = check_chunk(ActionChunk(target[None], 1 / episode.fps), measured, 0.0, limits)
            if isinstance(found, Hold):
                yield f"{what} {step}: {found.reason}: {found.detail}"
            else:
                before = target
    speed = np.abs(np.diff(episode.action[:, :ARM_DOF], axis=0)) * episode.fps
    over = speed - limits.velocity_rad_s[:ARM_DOF]
    if over.size and over.max() > 0:
        t, joint = (int(at) for at in np.unravel_index(int(over.argmax()), over.shape))
        yield (
            f"action {t}: {JOINT_NAMES[joint]} moves at {speed[t, joint]:.2f} rad/s, limit"
            f" {limits.velocity_rad_s[joint]:.2f}: the arm would stay behind; use --slower"
        )


def approach(start_rad: Array, goal_rad: Array) -> Array:
    """Return (N, 8): targets at SEND_HZ from one pose to another, starting and ending at rest."""
    seconds = max(0.5, 1.5 * float(np.abs(goal_rad - start_rad).max()) / APPROACH_RAD_S)
    share = np.linspace(0, 1, max(2, round(seconds * SEND_HZ)))
    eased = share**2 * (3 - 2 * share)  # its fastest moment is 1.5 times the mean
    return np.asarray(start_rad + eased[:, None] * (goal_rad - start_rad))


class Replay:
    """Drives one episode; the driver is started and closed by the caller."""

    def __init__(
        self,
        driver: TargetDriver,
        options: ReplayOptions,
        is_stopped: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._driver, self._options = driver, options
        self._is_stopped, self._clock = is_stopped, clock

    def run(self, episode: Episode, say: Callable[[str], None]) -> ReplayReport | None:
        """Return how the arm followed; None after a stop. Raises RecordError for a refusal."""
        first = episode.state[0].astype(np.float64)
        try:
            say("moving to the first pose")
            if not self._go_to(first):
                return None
            say(f"replaying {len(episode)} frames, {len(episode) / episode.fps:.1f} s as recorded")
            return self._follow(episode)
        except TargetError as error:
            raise RecordError(f"replay of {episode.source} stopped: {error}") from error

    def _go_to(self, goal: Array) -> bool:
        _, measured = self._driver.observe()
        start_s = self._clock()
        for step, target in enumerate(approach(measured, goal)):
            if not self._wait(start_s + step / SEND_HZ):
                return False
            self._driver.send(target)
        deadline_s = self._clock() + SETTLE_S
        while True:
            distance = np.abs(self._driver.observe()[1] - goal)[:ARM_DOF]
            if distance.max() <= NEAR_RAD:
                return True
            if self._clock() > deadline_s:
                joint = int(distance.argmax())
                raise RecordError(
                    f"the arm did not reach the first pose: {JOINT_NAMES[joint]} is"
                    f" {distance[joint]:.2f} rad away after {SETTLE_S:g} s; is it blocked?"
                )
            if not self._wait(self._clock() + 1 / SEND_HZ):
                return False
            self._driver.send(goal)

    def _follow(self, episode: Episode) -> ReplayReport | None:
        period_s = self._options.slower / episode.fps
        due_s: Array = (
            np.arange(1, len(episode) + 1, dtype=np.float64) * period_s
        )  # (T,) when each action is due
        times_s: Array = np.arange(len(episode), dtype=np.float64) * period_s  # (T,) of each state
        state, action = episode.state.astype(np.float64), episode.action.astype(np.float64)
        start_s = self._clock()
        errors: list[Array] = []
        step = 0
        while (elapsed_s := step / SEND_HZ) <= due_s[-1] + LAST_S:
            if not self._wait(start_s + elapsed_s):
                return None
            self._driver.send(_at(elapsed_s + self._options.follow_s, due_s, action))
            measured = self._driver.observe()[1]
            now_s = self._clock() - start_s
            if now_s <= due_s[-1]:
                errors.append(measured - _at(now_s, times_s, state))
            step += 1
        arm = np.abs(np.array(errors))[:, :ARM_DOF]  # (n, 7)
        joint = int(arm.max(axis=0).argmax())
        last = np.abs(self._driver.observe()[1] - action[-1])[:ARM_DOF]
        return ReplayReport(
            frames=len(episode),
            seconds=self._clock() - start_s,
            worst_rad=float(arm.max()),
            worst_joint=JOINT_NAMES[joint],
            mean_rad=float(arm.mean()),
            final_rad=float(last.max()),
        )

    def _wait(self, until_s: float) -> bool:
        """Wait; False after a stop."""
        while not self._is_stopped():
            left_s = until_s - self._clock()
            if left_s <= 0:
                return True
            time.sleep(min(left_s, 0.05))
        return False


def _at(time_s: float, times_s: Array, rows: Array) -> Array:
    """Return (8,): rows (T, 8) interpolated at one time."""
    return np.array([np.interp(time_s, times_s, rows[:, joint]) for joint in range(rows.shape[1])])
