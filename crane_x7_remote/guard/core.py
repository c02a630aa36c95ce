"""The guard's decisions. Messages and times → messages to the robot, replies to clients. Pure.

A trajectory passes if it is in time, comes from the one loop that drives, keeps every limit, and
is on the path that the controller runs. A late one is re-timed onto that path (`join`). Each waits
for the next joint state, so that it is judged by the arm's current position, on the robot's current
clock, and only while the robot's side runs.

A sent trajectory has arrived when it is heard on the arm's topic. If it is not heard in time,
rosbridge still holds it: the guard then sends the running path, which replaces it before it is
executed (`join.staying`). Until that is heard, nothing passes.

Nothing passes while the running path is unknown: at the start, after a step of the robot's clock,
after another driver, after a loss of rosbridge, after a trajectory that came back when it had
ended. It is known again when the arm is at rest.

Every method takes `now_s`, the guard's monotonic clock, and returns what to carry out
immediately and in order.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from crane_x7_remote.guard import join, reading
from crane_x7_remote.guard.join import Situation
from crane_x7_remote.guard.reading import Key
from crane_x7_remote.guard.robot_state import RobotState
from crane_x7_remote.inference.hold import Hold
from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.safety import check_joints
from crane_x7_remote.inference.trajectory import flown, is_followed
from crane_x7_remote.rosbridge import messages
from crane_x7_remote.rosbridge.messages import MessageError, ParsedTrajectory
from crane_x7_vla_rl.robot import ARM_DOF, ARM_JOINT_NAMES, LOWER_RAD, UPPER_RAD
from crane_x7_vla_rl.types import Trajectory

Message = Mapping[str, Any]

AT_ONCE_S = 0.003
"""With a joint state this recent, a trajectory does not wait for the next one."""
PATIENCE_S = 0.1
"""A trajectory is refused if no joint state follows within this time."""
HEADROOM, MARGIN_S, LONGEST_LEAD_S = 1.5, 0.02, 0.25
TAKE_BACK_SHARE = 0.5
"""Share of the lead: a trajectory that has not been heard by then is taken back."""
SLOWEST_BRAKE_S = 0.2
"""While rosbridge needs longer than this to answer, a brake would come too late, and be a step."""
OVERSLEPT_S = 0.004
"""If the guard wakes later than this, it was stalled: it first reads what has arrived meanwhile."""
LOOK_AGAIN_S = 0.01
RESTART_LEAD_S = 0.2
"""See shaping.RESTART_LEAD_S."""
JUST_S = 0.01
"""The controller may hear a trajectory this much later than the guard."""
FUTURE_S = 0.1
"""A trajectory may be stamped this far ahead of the robot's clock."""
DRIVER_S = 2.0
"""A loop that was silent for longer has released the arm."""
REMEMBERED = 64
OWN_FRAME_ID = "guard/"


@dataclass(frozen=True)
class CoreConfig:
    """What the guard watches, and its limits."""

    arm_topic: str = "/crane_x7_arm_controller/joint_trajectory"
    trajectory_topic: str = "/vla/predicted_trajectory"
    link_timeout_s: float = 5.0
    """If the driving loop's connection broke and it does not reconnect within this time, the arm is
    stopped until `resume`."""
    max_joints_age_s: float = 0.2


@dataclass(frozen=True)
class Send:
    """Publish `message` on `topic` at rosbridge, now."""

    topic: str
    message: Message


@dataclass(frozen=True)
class Tell:
    """Send a rosbridge status operation to client `driver`."""

    driver: int
    level: str
    text: str


Output = Send | Tell


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A trajectory that waits for a joint state."""

    driver: int
    key: Key
    parsed: ParsedTrajectory
    came_s: float


@dataclass(frozen=True, eq=False)
class _SentPath:
    """A trajectory that was sent and has not been heard yet."""

    frame_id: str
    sent_s: float
    look_s: float
    before: Trajectory
    """The path that runs if it never arrives."""
    takes_back: bool
    asks: bool
    """Whether it only measures how soon rosbridge answers."""


class GuardCore:
    """One arm's guard. Not thread-safe: call it from the gate's event loop only."""

    def __init__(self, config: CoreConfig, limits: Limits | None = None) -> None:
        self._config = config
        self._limits = limits or Limits()
        self._robot = RobotState()
        self._echoes_s: deque[float] = deque(maxlen=64)
        self._running: Trajectory | None = None
        self._is_certain = False
        self._unknown: str | None = "the arm has not been at rest yet"
        self._stopped: str | None = None
        self._wants_brake = False
        self._brake_lead_s = 0.0
        """Least lead of a brake, after one was taken back."""
        self._waiting: _Waiting | None = None
        self._flight: _SentPath | None = None
        self._sent_ids: OrderedDict[str, None] = OrderedDict()
        self._newest: OrderedDict[str, int] = OrderedDict()
        self._outcomes: OrderedDict[Key, Trajectory | None] = OrderedDict()
        """What was sent for a trajectory, stamped on the robot's clock; None: sent unchanged."""
        self._predictions: OrderedDict[Key, Message] = OrderedDict()
        self._driver: tuple[str, int] | None = None
        """Session and client of the loop that drives."""
        self._driver_s = 0.0
        self._left_s: float | None = None
        self._own = 0
        self._version: messages.RosVersion = 2
        self._counts: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._told: dict[int, tuple[str, float]] = {}

    # --- from the robot --------------------------------------------------------------------------

    def hear_joints(self, message: Message, now_s: float) -> list[Output]:
        """Process a sensor_msgs/JointState; raises MessageError if it is not the arm's."""
        before_s = self._robot.offset_s
        if self._robot.hear(message, now_s):
            self._lose_track("the robot's clock was stepped", now_s)
        elif before_s is not None and self._robot.offset_s != before_s:
            assert self._robot.offset_s is not None
            self._shift_paths(before_s - self._robot.offset_s)
        self._find_track(now_s)
        return self._release(now_s)

    def hear_echo(self, message: Message, now_s: float) -> list[Output]:
        """Process a JointTrajectory from the arm's topic: the guard's own, or another node's."""
        header = message.get("header")
        frame_id = header.get("frame_id") if isinstance(header, Mapping) else None
        flight = self._flight
        if flight is not None and frame_id == flight.frame_id:
            self._flight = None
            if flight.takes_back and self._wants_brake:
                return self._brake_again(flight, now_s)
            if not flight.takes_back:
                self._echoes_s.append(now_s - flight.sent_s)
                if self._may_be_refused(flight, now_s):
                    self._lose_track("a trajectory came back after its end", now_s)
            return self._release(now_s)
        if frame_id not in self._sent_ids:
            self._counts["strangers"] += 1
            self._lose_track(
                f"another node publishes on {self._config.arm_topic}, frame_id"
                f" {str(frame_id)[:40]!r}",
                now_s,
            )
        return []

    def upstream_changed(self, is_up: bool, now_s: float) -> list[Output]:
        """Note that the link to rosbridge came up or went down."""
        self._flight = None
        self._lose_track(
            "rosbridge was lost" if not is_up else "rosbridge has just connected", now_s
        )
        return self._refuse_waiting("rosbridge_lost", "the guard has no link to rosbridge", now_s)

    # --- from clients ----------------------------------------------------------------------------

    def take_trajectory(self, driver: int, message: Message, now_s: float) -> list[Output]:
        """Process a JointTrajectory that client `driver` published on the arm's topic."""
        outputs = self._refuse_waiting("superseded", "a newer one came before a joint state", now_s)
        try:
            parsed = messages.trajectory(message)
            key = reading.key_of(parsed)
            reading.check_numbers(parsed)
        except (MessageError, OverflowError) as error:
            return [*outputs, *self._refuse(driver, None, "malformed", str(error), now_s)]
        self._version = 1 if "secs" in message["header"]["stamp"] else 2
        self._waiting = _Waiting(driver, key, parsed, now_s)
        newest = self._robot.newest
        if newest is not None and now_s - newest.arrival_s <= AT_ONCE_S:
            outputs += self._release(now_s)
        return outputs

    def take_prediction(self, driver: int, message: Message, now_s: float) -> list[Output]:
        """Process the same over 8 joints: loops listen to it, so it must show what really runs."""
        try:
            key = reading.key_of(messages.trajectory(message))
        except MessageError as error:
            return self._refuse(driver, None, "malformed", str(error), now_s)
        self._predictions[key] = message
        _forget(self._predictions)
        return self._release_prediction(key)

    def take_goal(self, driver: int, position_rad: object, now_s: float) -> str | None:
        """Return why a gripper goal is refused, None if it may pass."""
        if self._stopped is not None:
            return f"stopped: {self._stopped}"
        if not isinstance(position_rad, int | float) or isinstance(position_rad, bool):
            return f"gripper position is {str(position_rad)[:40]!r}, expected radians"
        lower, upper = float(LOWER_RAD[-1]), float(UPPER_RAD[-1])
        if not lower - 1e-3 <= position_rad <= upper + 1e-3:
            return f"gripper position is {position_rad} rad, expected {lower:g} to {upper:g}"
        owner = self._driver if now_s - self._driver_s <= DRIVER_S else None
        if owner is not None and owner[1] != driver:
            return f"loop {owner[0]} drives the arm"
        return None

    def client_left(self, driver: int, now_s: float, clean: bool = False) -> list[Output]:
        """Note that a client's connection ended; `clean`: the client closed it in order."""
        self._told.pop(driver, None)
        if self._driver is None or self._driver[1] != driver:
            return []
        if clean:
            self._driver = None
        elif now_s - self._driver_s <= DRIVER_S:
            self._left_s = now_s
        return []

    # --- stop ------------------------------------------------------------------------------------

    @property
    def stopped(self) -> str | None:
        """Why everything is stopped, or None."""
        return self._stopped

    def stop(self, why: str, now_s: float) -> list[Output]:
        """Brake the running path within the limits and pass nothing until `resume`."""
        if self._stopped is not None:
            return []
        self._stopped, self._wants_brake, self._brake_lead_s = why, True, 0.0
        self._counts["stops"] += 1
        outputs = self._refuse_waiting("stopped", why, now_s)
        return outputs + self._brake(now_s)

    def resume(self, now_s: float) -> list[Output]:
        """Let trajectories pass again, from any loop."""
        del now_s
        self._stopped, self._wants_brake, self._driver, self._left_s = None, False, None, None
        self._brake_lead_s = 0.0
        return []

    # --- time ------------------------------------------------------------------------------------

    @property
    def wake_s(self) -> float | None:
        """When `wake` must be called next; None: not needed."""
        times = [
            self._flight.look_s if self._flight is not None else None,
            self._waiting.came_s + PATIENCE_S if self._waiting is not None else None,
            self._left_s + self._config.link_timeout_s if self._left_s is not None else None,
        ]
        return min((each for each in times if each is not None), default=None)

    def wake(self, now_s: float) -> list[Output]:
        """Do everything that is due by now."""
        outputs: list[Output] = []
        if self._left_s is not None and now_s >= self._left_s + self._config.link_timeout_s:
            self._left_s = None
            outputs += self.stop(
                f"the loop was disconnected for {self._config.link_timeout_s:g} s", now_s
            )
        if self._waiting is not None and now_s >= self._waiting.came_s + PATIENCE_S:
            outputs += self._refuse_waiting(
                "robot_silent", f"no joint state, or no echo, for {PATIENCE_S:g} s", now_s
            )
        if self._flight is not None and now_s >= self._flight.look_s:
            outputs += self._look(self._flight, now_s)
        return outputs

    def report(self, now_s: float) -> dict[str, Any]:
        """Return counters and state, ready for JSON."""
        running = self._running
        left_s = 0.0 if running is None else join.moves_until_s(running) - now_s
        return {
            "stopped": self._stopped,
            "unknown": self._unknown,
            "driver": None if self._driver is None else self._driver[0],
            "passed": self._counts["passed"],
            "retimed": self._counts["retimed"],
            "taken_back": self._counts["taken_back"],
            "strangers": self._counts["strangers"],
            "stops": self._counts["stops"],
            "refused": dict(sorted(self._refused.items())),
            "running": left_s > 0,
            "ends_s": max(left_s, 0.0),
            "lead_ms": self._lead_s * 1e3,
        }

    # --- what the controller runs ----------------------------------------------------------------

    @property
    def _lead_s(self) -> float:
        """How long after now a path may leave the running one: rosbridge has passed it on by then.

        It covers nine of ten echoes with a margin; a slower trajectory is taken back.
        """
        echoes_s = sorted(self._echoes_s)
        usual_s = echoes_s[int(0.9 * len(echoes_s))] if echoes_s else 0.0
        return max(min(HEADROOM * usual_s + MARGIN_S, LONGEST_LEAD_S), self._brake_lead_s)

    def _shift_paths(self, by_s: float) -> None:
        """Keep the paths' times on the robot's clock, whose estimate has improved."""
        if self._running is not None:
            self._running = replace(self._running, stamp_s=self._running.stamp_s + by_s)
        if self._flight is not None:
            before = self._flight.before
            before = replace(before, stamp_s=before.stamp_s + by_s)
            self._flight = replace(self._flight, before=before)

    def _lose_track(self, why: str, now_s: float) -> None:
        """Note that the running path is unknown; nothing passes until the arm is at rest."""
        del now_s
        self._unknown = why

    def _may_be_refused(self, heard: _SentPath, now_s: float) -> bool:
        """Whether it came so late that the controller may have refused it, and that matters.

        Rosbridge repeats what the controller refuses because it has ended or expired.
        """
        running, before = self._running, heard.before
        assert running is not None
        over_s = min(join.end_s(running), running.stamp_s + running.valid_s)
        if now_s < over_s - JUST_S:
            return False
        apart = np.abs(running.position_rad[-1] - before.position_rad[-1])[:ARM_DOF].max()
        return now_s < join.moves_until_s(before) or bool(apart > join.SAME_RAD)

    def _find_track(self, now_s: float) -> None:
        """Use the arm's position as the running path if that is unknown and the arm is at rest."""
        newest = self._robot.newest
        assert newest is not None
        running = self._running
        if self._unknown is None:
            assert running is not None
            if is_followed(running, newest.state, newest.taken_s, self._limits):
                return
            if now_s < join.end_s(running):
                return  # refused meanwhile, see _judge
        if self._flight is not None or not self._robot.is_at_rest(now_s):
            return
        if running is not None and now_s < join.moves_until_s(running):
            return
        self._running = join.rest(newest.state.position_rad, now_s)
        self._is_certain, self._unknown = False, None

    def _situation(self, now_s: float) -> Situation:
        newest, running = self._robot.newest, self._running
        assert newest is not None
        assert running is not None
        lead_s = self._lead_s if self._is_certain else max(self._lead_s, RESTART_LEAD_S)
        return Situation(now_s, running, self._is_certain, newest.state, newest.taken_s, lead_s)

    # --- judging ---------------------------------------------------------------------------------

    def _release(self, now_s: float) -> list[Output]:
        """Judge the waiting trajectory, if everything needed for that is known."""
        if self._wants_brake:
            return self._brake(now_s)
        waiting = self._waiting
        if waiting is None or self._flight is not None or not self._robot.is_fresh(now_s):
            return []
        self._waiting = None
        verdict = self._judge(waiting, now_s)
        if not isinstance(verdict, tuple):
            return self._refuse(waiting.driver, waiting.key, verdict.reason, verdict.detail, now_s)
        path, is_retimed = verdict
        self._note_driver(waiting, now_s)
        self._counts["retimed" if is_retimed else "passed"] += 1
        mark = "/retimed" if is_retimed else ""
        frame_id = f"vla/{path.session}/{path.sequence}/{round(path.valid_s * 1e3)}{mark}"
        stamped = replace(path, stamp_s=waiting.parsed.stamp_s)
        outputs = self._send(path, stamped, frame_id, now_s)
        self._outcomes[waiting.key] = stamped if is_retimed else None
        _forget(self._outcomes)
        return outputs + self._release_prediction(waiting.key)

    def _judge(self, waiting: _Waiting, now_s: float) -> tuple[Trajectory, bool] | Hold | _No:
        parsed, (session, sequence) = waiting.parsed, waiting.key
        robot_s = self._robot.robot_time(now_s)
        if self._stopped is not None:
            return _No("stopped", self._stopped)
        if self._unknown is not None:
            return _No("unknown_path", f"{self._unknown}; waiting for the arm to rest")
        assert parsed.valid_s is not None
        if robot_s > parsed.stamp_s + parsed.valid_s:
            return _No("expired", f"{robot_s - parsed.stamp_s:.3f} s after its frame")
        if parsed.stamp_s > robot_s + FUTURE_S:
            return _No("future", f"stamped {parsed.stamp_s - robot_s:.3f} s ahead of the robot")
        if sequence <= self._newest.get(session, -1):
            return _No("out_of_order", f"sequence {sequence} of loop {session} is not new")
        driver = self._driver
        if driver is not None and driver[0] != session and now_s - self._driver_s <= DRIVER_S:
            return _No("other_driver", f"loop {driver[0]} drives the arm")
        at = self._situation(now_s)
        age_s = now_s - at.measured_s
        hold = check_joints(at.measured, age_s, self._limits, self._config.max_joints_age_s)
        if hold is not None:
            return hold
        if not is_followed(at.running, at.measured, at.measured_s, self._limits):
            return _No("off_path", "the arm is not on its path: pushed, blocked or powered off")
        return join.joined(reading.on_our_clock(parsed, at, robot_s - now_s), at, self._limits)

    def _note_driver(self, waiting: _Waiting, now_s: float) -> None:
        session, sequence = waiting.key
        self._driver, self._driver_s, self._left_s = (session, waiting.driver), now_s, None
        self._newest[session] = sequence
        _forget(self._newest)

    def _release_prediction(self, key: Key) -> list[Output]:
        """Send the prediction after its trajectory has passed, with the same changes."""
        if key not in self._outcomes or key not in self._predictions:
            return []
        path, message = self._outcomes[key], self._predictions.pop(key)
        if path is not None:
            message = reading.retold(messages.trajectory(message), path, self._version)
        return [Send(self._config.trajectory_topic, message)]

    def _refuse_waiting(self, reason: str, detail: str, now_s: float) -> list[Output]:
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return []
        return self._refuse(waiting.driver, waiting.key, reason, detail, now_s)

    def _refuse(
        self, driver: int, key: Key | None, reason: str, detail: str, now_s: float
    ) -> list[Output]:
        """Count a refusal; report it to the client once per change, and every few seconds."""
        self._refused[reason] += 1
        if key is not None:
            self._predictions.pop(key, None)
        told, told_s = self._told.get(driver, ("", 0.0))
        if told == reason and now_s - told_s < 5.0:
            return []
        self._told[driver] = (reason, now_s)
        return [Tell(driver, "error", f"refused a trajectory, {reason}: {detail}")]

    # --- sending ---------------------------------------------------------------------------------

    def _send(
        self,
        path: Trajectory,
        stamped: Trajectory,
        frame_id: str,
        now_s: float,
        takes_back: bool = False,
        asks: bool = False,
    ) -> list[Output]:
        """Send `stamped`, which is `path` on the robot's clock, and wait for its echo."""
        assert self._running is not None
        lead_s = self._lead_s
        look_s = now_s + (lead_s if takes_back else TAKE_BACK_SHARE * lead_s)
        self._flight = _SentPath(frame_id, now_s, look_s, self._running, takes_back, asks)
        self._sent_ids[frame_id] = None
        _forget(self._sent_ids)
        self._running = flown(self._running, path)
        self._is_certain = True
        message = messages.to_ros(stamped, ARM_JOINT_NAMES, self._version)
        message["header"]["frame_id"] = frame_id
        return [Send(self._config.arm_topic, message)]

    def _send_own(
        self, path: Trajectory, now_s: float, takes_back: bool = False, asks: bool = False
    ) -> list[Output]:
        self._own += 1
        stamped = replace(path, stamp_s=self._robot.robot_time(path.stamp_s))
        return self._send(path, stamped, f"{OWN_FRAME_ID}{self._own}", now_s, takes_back, asks)

    def _brake(self, now_s: float) -> list[Output]:
        """Brake the running path when it is known; an unknown path ends at rest anyway."""
        if self._flight is not None or self._running is None or self._unknown is not None:
            return []
        self._wants_brake = False
        at = self._situation(now_s)
        if now_s + at.lead_s >= join.moves_until_s(at.running):
            return []
        return self._send_own(join.brake(at, self._limits), now_s)

    def _brake_again(self, heard: _SentPath, now_s: float) -> list[Output]:
        """What took something back was heard: brake, in time for a rosbridge as slow as it is now.

        How long that was held back says nothing about now, so the same path is sent again, to ask.
        A brake with too short a lead would be a step, and be taken back, too.
        """
        took_s = now_s - heard.sent_s
        if self._unknown is None and now_s < join.moves_until_s(heard.before):
            if not heard.asks or took_s > SLOWEST_BRAKE_S:
                return self._take_back(heard, now_s, asks=True)
            self._brake_lead_s = 1.25 * took_s / TAKE_BACK_SHARE
        return self._brake(now_s)

    def _look(self, flight: _SentPath, now_s: float) -> list[Output]:
        """A trajectory was not heard in time: take it back by sending the path before it."""
        if flight.takes_back:
            if now_s - flight.sent_s > join.STAY_S:
                self._flight = None
                self._lose_track("rosbridge does not answer", now_s)
            else:
                self._flight = replace(flight, look_s=now_s + self._lead_s)
            return []
        if now_s - flight.look_s > OVERSLEPT_S:
            self._flight = replace(flight, look_s=now_s + LOOK_AGAIN_S)
            return []
        self._counts["taken_back"] += 1
        self._wants_brake |= self._stopped is not None
        return self._take_back(flight, now_s)

    def _take_back(self, sent: _SentPath, now_s: float, asks: bool = False) -> list[Output]:
        self._running = sent.before
        path = join.staying(sent.before, now_s)
        return self._send_own(path, now_s, takes_back=True, asks=asks)


@dataclass(frozen=True)
class _No:
    """One of the guard's own refusals."""

    reason: str
    detail: str


def _forget(memory: OrderedDict[Any, Any]) -> None:
    while len(memory) > REMEMBERED:
        memory.popitem(last=False)
