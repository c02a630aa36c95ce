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


class SimJudge:
    """A context manager; `verdict` is called often."""

    def __init__(
        self, host: str, port: int, task: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._task, self._clock = task, clock
        self._address = f"{host}:{port}"
        self._changed = threading.Condition()
        self._scene: dict[str, Any] = {}
        self._since_s: float | None = None
        self._ordered: tuple[int, float] | None = None
        """Scenes that the robot had arranged before the present order, and when that was sent."""
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
        self._since_s = None

    def verdict(self) -> bool:
        """Return whether the task has been fulfilled for HOLD_S."""
        with self._changed:
            is_done = fulfilled(self._task, self._scene)
        now_s = self._clock()
        if not is_done:
            self._since_s = None
        elif self._since_s is None:
            self._since_s = now_s
        return self._since_s is not None and now_s - self._since_s >= HOLD_S

    def put_back(self) -> bool:
        """Let a hand put every cube back where it was at first; False if it could not be sent."""
        with self._changed:
            colours = sorted(self._scene.get("cubes", {}))
        return self._client.publish(
            [protocol.publish(SIM_HAND_TOPIC, messages.string(colour)) for colour in colours]
        )

    def arrange(self, seed: int) -> bool:
        """Let the robot arrange the scene of `seed`; True once it has. Call it again until then.

        Raises SettingsError if the robot does not do it in time.
        """
        with self._changed:
            scene = self._scene
        arranged, now_s = scene.get("arranged", 0), self._clock()
        if self._ordered is None:
            operation = protocol.publish(SIM_SCENE_TOPIC, {"data": seed})
            if self._client.publish([operation]):
                self._ordered = arranged, now_s
            return False
        before, sent_s = self._ordered
        if scene.get("seed") == seed and arranged != before:
            self._ordered = None
            return True
        if now_s - sent_s > ARRANGE_S:
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
                self._scene = scene
                self._changed.notify_all()
