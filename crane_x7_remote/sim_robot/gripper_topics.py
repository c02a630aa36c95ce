"""The gripper's action on ROS 1: actionlib's topics, because its rosbridge has no action
operations.

Messages → messages, no clock. A client publishes a GripperCommandActionGoal on <action>/goal and
may cancel on <action>/cancel; the robot answers on <action>/result and keeps <action>/status;
<action>/feedback is never published, as by gripper_action_controller.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from crane_x7_remote.rosbridge.messages import write_stamp
from crane_x7_remote.sim_robot.controller import GripperResult

REMEMBERED_GOALS = 16
"""Goals in <action>/status; the oldest ended goal is dropped first."""


class GoalStatus(IntEnum):
    """actionlib_msgs/GoalStatus."""

    ACTIVE = 1
    PREEMPTED = 2
    SUCCEEDED = 3
    REJECTED = 5


@dataclass(frozen=True)
class TopicGoal:
    """A goal from <action>/goal."""

    id: str
    stamp: Mapping[str, int]
    args: Mapping[str, Any]


class GripperTopics:
    """Topic names of `action`; reads and writes its messages."""

    def __init__(self, action: str) -> None:
        self.goal, self.cancel = f"{action}/goal", f"{action}/cancel"
        self.result, self.status = f"{action}/result", f"{action}/status"
        self.types = {
            self.goal: "control_msgs/GripperCommandActionGoal",
            self.cancel: "actionlib_msgs/GoalID",
            self.result: "control_msgs/GripperCommandActionResult",
            self.status: "actionlib_msgs/GoalStatusArray",
            f"{action}/feedback": "control_msgs/GripperCommandActionFeedback",
        }
        self._numbers = itertools.count(1)
        self._goals: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def read_goal(self, message: Mapping[str, Any], now_s: float) -> TopicGoal:
        """Return the goal in a GripperCommandActionGoal; a missing id is generated."""
        given = message["goal_id"]
        goal_id = given["id"] or f"sim_robot-{next(self._numbers)}-{now_s:.9f}"
        stamp = given["stamp"] if any(given["stamp"].values()) else write_stamp(now_s, 1)
        return TopicGoal(goal_id, stamp, message["goal"])

    def is_cancelled(self, goal_id: str, message: Mapping[str, Any]) -> bool:
        """Whether a GoalID on <action>/cancel matches this goal: by id, or by a stamp that is not
        older than the goal; without either it matches every goal."""
        stamp = tuple(message["stamp"].values())
        if message["id"] == goal_id or (not message["id"] and not any(stamp)):
            return True
        started = self._goals.get(goal_id, {}).get("goal_id", {}).get("stamp", {})
        return any(stamp) and tuple(started.values()) <= stamp

    def note(self, goal: TopicGoal, status: GoalStatus, text: str = "") -> None:
        """Record the state of a goal."""
        goal_id = {"stamp": dict(goal.stamp), "id": goal.id}
        self._goals[goal.id] = {"goal_id": goal_id, "status": int(status), "text": text}
        if len(self._goals) > REMEMBERED_GOALS:
            self._goals.popitem(last=False)

    def end(
        self, goal_id: str, status: GoalStatus, result: GripperResult, now_s: float
    ) -> dict[str, Any]:
        """Record how a goal ended; return its GripperCommandActionResult."""
        known = self._goals.setdefault(
            goal_id, {"goal_id": {"stamp": write_stamp(0, 1), "id": goal_id}, "text": ""}
        )
        known["status"] = int(status)
        return {
            "header": _header(now_s),
            "status": dict(known),
            "result": result_values(result),
        }

    def status_array(self, now_s: float) -> dict[str, Any]:
        """Return the GoalStatusArray of the newest goals."""
        return {
            "header": _header(now_s),
            "status_list": [dict(status) for status in list(self._goals.values())],
        }


def result_values(result: GripperResult) -> dict[str, Any]:
    """Return the fields of a GripperCommand's result, the same on both ROS versions."""
    return {
        "position": result.position_rad,
        "effort": 0.0,
        "stalled": result.stalled,
        "reached_goal": result.reached_goal,
    }


def _header(now_s: float) -> dict[str, Any]:
    return {"seq": 0, "stamp": write_stamp(now_s, 1), "frame_id": ""}
