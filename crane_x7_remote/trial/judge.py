"""Judges episodes by the true scene of a simulated robot. /sim/state → success or not yet.

It connects to the simulated robot's own port: the scene is no topic of a real robot, so a guard
does not pass it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from crane_x7_remote.errors import SettingsError
from crane_x7_remote.rosbridge import messages, protocol
from crane_x7_remote.rosbridge.client import RosbridgeClient
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_remote.rosbridge.messages import MessageError
from crane_x7_remote.rosbridge.topics import STRING
from crane_x7_remote.sim_robot.robot import SIM_HAND_TOPIC, SIM_SCENE_TOPIC, SIM_STATE_TOPIC
from crane_x7_remote.sim_robot.scene import fulfilled

CONNECT_S: Final = 10.0
ARRANGE_S: Final = 10.0
"""How long the simulated robot may take to arrange a scene."""
HOLD_S: Final = 1.0
"""How long the task must stay fulfilled."""
SCENE_AGE_S: Final = 2.0
"""An older scene says nothing: the link is down, or the robot stands still."""
REPEAT_S: Final = 1.0
"""An order is repeated if a scene of this much later does not show what was ordered."""


class SimJudge:
    """A context manager; `verdict` is called often."""

    def __init__(
        self, host: str, port: int, task: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._task, self._clock = task, clock
        self._address = f"{host}:{port}"
        self._changed = threading.Condition()
        self._scene: dict[str, Any] = {}
        self._scene_s = float("-inf")
        """When it came."""
        self._begun_s = float("-inf")
        self._since_s: float | None = None
        """When the first scene came of those that show the task fulfilled until now."""
        self._ordered: tuple[int, float, float] | None = None
        """Scenes that the robot had arranged before the present order, and when that was sent first
        and last."""
        self._client = RosbridgeClient(
            ClientConfig(
                host,
                port,
                camera_topic=None,
                joint_states_topic=None,
                instruction_topic=None,
                advertise={SIM_HAND_TOPIC: STRING, SIM_SCENE_TOPIC: "std_msgs/Int32"},
            ),
            clock,
        )
        self._client.subscribe(SIM_STATE_TOPIC, STRING, self._hear)

    def __enter__(self) -> SimJudge:
        """Connect and wait for the scene; raises SettingsError, PeerUnreachableError."""
        self._client.start()
        try:
            self._client.wait_connected(CONNECT_S)
            with self._changed:
                if not self._changed.wait_for(lambda: self._scene, CONNECT_S):
                    raise SettingsError(
                        f"--judge sim: no {SIM_STATE_TOPIC} from {self._address} within"
                        f" {CONNECT_S:g} s; give the simulated robot's own port, not its guard's,"
                        " with --judge-port"
                    )
        except BaseException:
            self._client.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def begin(self) -> None:
        """Judge a new episode."""
        self._since_s, self._begun_s = None, self._clock()

    def verdict(self) -> bool:
        """Return whether the task was fulfilled in all scenes that came during HOLD_S."""
        with self._changed:
            scene, came_s = self._scene, self._scene_s
        if self._clock() - came_s > SCENE_AGE_S or not fulfilled(self._task, scene):
            self._since_s = None
        elif self._since_s is None:
            self._since_s = max(came_s, self._begun_s)
        return self._since_s is not None and came_s - self._since_s >= HOLD_S

    def put_back(self) -> bool:
        """Let a hand put every cube back where it was at first; True once a later scene does not
        show the task fulfilled, or after ARRANGE_S. Call it again until then."""
        with self._changed:
            scene, came_s = self._scene, self._scene_s
        hand = [
            protocol.publish(SIM_HAND_TOPIC, messages.string(colour))
            for colour in sorted(scene.get("cubes", {}))
        ]
        self._order(hand, 0, came_s)
        if self._ordered is None:
            return False
        _, first_s, sent_s = self._ordered
        is_back = came_s > sent_s and not fulfilled(self._task, scene)
        if is_back or self._clock() - first_s > ARRANGE_S:
            self._ordered = None
            return True
        return False

    def _order(self, order: list[dict[str, Any]], arranged: int, came_s: float) -> None:
        """Send an order: `publish` tells only that it was not dropped yet, so again if the scene
        that came at `came_s` is so much later that it should show it."""
        before, now_s = self._ordered, self._clock()
        is_lost = before is not None and came_s - before[2] > REPEAT_S
        if (before is None or is_lost) and self._client.publish(order):
            first = (arranged, now_s) if before is None else before[:2]
            self._ordered = *first, now_s

    def arrange(self, seed: int) -> bool:
        """Let the robot arrange the scene of `seed`; True once it has. Call it again until then.

        Raises SettingsError if the robot does not do it in time.
        """
        with self._changed:
            scene, came_s = self._scene, self._scene_s
        arranged = scene.get("arranged", 0)
        ordered = self._ordered
        if ordered is not None and scene.get("seed") == seed and arranged != ordered[0]:
            self._ordered = None
            return True
        operation = protocol.publish(SIM_SCENE_TOPIC, {"data": seed})
        self._order([operation], arranged, came_s)
        if ordered is not None and self._clock() - ordered[1] > ARRANGE_S:
            raise SettingsError(
                f"--judge sim: {self._address} did not arrange the scene of seed {seed} within"
                f" {ARRANGE_S:g} s ({SIM_SCENE_TOPIC}); is it a sim-robot of this version?"
            )
        return False

    def _hear(self, message: Mapping[str, Any]) -> None:
        try:
            scene = json.loads(message["data"])
        except (KeyError, TypeError, ValueError) as error:
            raise MessageError(f"{SIM_STATE_TOPIC} is not JSON: {error}") from error
        if isinstance(scene, dict):
            with self._changed:
                self._scene, self._scene_s = scene, self._clock()
                self._changed.notify_all()
