"""A real loop with a real client against a real rosbridge server, for the survival tests.

The robot is `SimRobot` with an arm without physics; faults are injected where they occur: into the
camera's pictures, the robot's messages, the link, or the policy.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from websockets.sync.client import connect

from crane_x7_remote.inference.config import LoopConfig
from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.loop import InferenceLoop
from crane_x7_remote.inference.outgoing import OutgoingTopics
from crane_x7_remote.rosbridge import messages
from crane_x7_remote.rosbridge.client import RosbridgeClient
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_remote.settings import Settings
from crane_x7_remote.sim_robot.arm import KinematicArm, still_picture
from crane_x7_remote.sim_robot.controller import ControllerReport
from crane_x7_remote.sim_robot.robot import RobotConfig, SimRobot
from crane_x7_remote.sim_robot.server import ServerConfig
from crane_x7_vla_rl.robot import HOME_RAD, LOWER_RAD, UPPER_RAD
from crane_x7_vla_rl.types import ActionChunk, Array, JointState, Observation

PICTURE = still_picture(160, 120)


def wait_until(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    """Fail the test unless `condition` holds within `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)


class FaultyRobot(SimRobot):
    """A robot whose camera can stop and whose joint states can be tampered with."""

    def __init__(self, port: int = 0, clock_offset_s: float = 0.0, wrist_topic: str = "") -> None:
        self.picture = PICTURE
        self.camera_runs = True
        self.wrist_picture: bytes | None = None
        """In place of the one that the arm draws."""
        self.wrist_runs = True
        self.wrist_ahead_s = 0.0
        """Added to the stamps of the wrist camera's frames."""
        self.tamper: Callable[[dict[str, Any]], dict[str, Any]] = dict
        self.camera_ahead_s: Callable[[float], float] = lambda _: 0.0
        """Added to each frame's stamp."""
        self.torque = True
        """Without it the arm stays where it is, whatever it is sent."""
        self.sessions: list[tuple[float, str]] = []
        """When a trajectory of which loop reached the arm's topic."""
        self.stamps: list[tuple[float, float]] = []
        """The robot's time at which a trajectory came, and its stamp."""
        config = RobotConfig(
            server=ServerConfig(port=port),
            clock_offset_s=clock_offset_s,
            topics=Settings(wrist_camera_topic=wrist_topic),
        )
        super().__init__(config, self._faulty_arm)

    def _faulty_arm(self) -> KinematicArm:
        robot = self

        class Arm(KinematicArm):
            def jpeg(self) -> bytes:
                return robot.picture

            def wrist_jpeg(self) -> bytes:
                return robot.wrist_picture or super().wrist_jpeg()

            def step(self, target_rad: Array) -> None:
                if robot.torque:
                    super().step(target_rad)
                else:
                    self._velocity = np.zeros_like(self._velocity)

        return Arm(period_s=1 / 60)

    def joint_message(self, state: JointState, stamp_s: float) -> dict[str, Any]:
        return self.tamper(super().joint_message(state, stamp_s))

    def _publish_camera(self, arm: Any, stamp_s: float) -> bool:
        shifted_s = stamp_s + self.camera_ahead_s(stamp_s)
        return self.camera_runs and super()._publish_camera(arm, shifted_s)

    def _publish_image(self, topic: str, draw: Callable[[], bytes], stamp_s: float) -> bool:
        if topic == self._config.topics.wrist_camera_topic:
            if not self.wrist_runs:
                return False
            stamp_s += self.wrist_ahead_s
        return super()._publish_image(topic, draw, stamp_s)

    def set_clock(self, by_s: float) -> None:
        """Step the robot's clock, as a time service would."""
        self._epoch_s += by_s

    def receive(self, topic: str, message: Any) -> None:
        if topic.endswith("joint_trajectory"):
            frame_id = message.get("header", {}).get("frame_id", "")
            self.stamps.append((self.time_s(), messages.read_stamp(message)))
            self.sessions.append((time.monotonic(), frame_id.split("/")[1]))
        super().receive(topic, message)

    @property
    def report(self) -> ControllerReport:
        assert self._controller is not None
        with self._lock:
            return self._controller.report

    @property
    def moved(self) -> int:
        """Trajectories accepted so far."""
        return self.report.accepted

    def assert_nothing_bad_arrived(self, *, refused: tuple[str, ...] = ()) -> None:
        """No trajectory older than its validity was sent (unless `refused` names the reason for
        which the controller turned it down), none moved the arm outside its limits."""
        report = self.report
        assert report.accepted > 0
        assert report.limit_violations == 0, report
        assert report.max_velocity_ratio <= 1.001, report
        assert set(report.rejected) <= set(refused), report


class SwingingPolicy:
    """Swings the first two joints within the limits; `fault` replaces its answer."""

    def __init__(self) -> None:
        self.fault: Callable[[Observation], object] | None = None
        self.instructions: list[str] = []

    def predict(self, observations: Sequence[Observation]) -> list[Any]:
        self.instructions.append(observations[0].instruction)
        if self.fault is not None:
            return [self.fault(observations[0])]
        return [self.swing(observations[0])]

    def swing(self, observation: Observation) -> ActionChunk:
        due_s = observation.time_s + 0.1 * np.arange(1, 7)
        targets = np.tile(HOME_RAD, (6, 1))
        targets[:, 0] += 0.6 * np.sin(2 * due_s)
        targets[:, 1] += 0.2 * np.cos(3 * due_s)
        targets[:, 7] = 0.4 + 0.3 * np.sin(due_s)
        return ActionChunk(np.clip(targets, LOWER_RAD, UPPER_RAD), 0.1)

    def reset(self) -> None:
        """Nothing is remembered."""


class RunningLoop:
    """A loop that drives on its own thread, from entering to leaving the context."""

    def __init__(self, port: int, policy: SwingingPolicy | None = None, **config: Any) -> None:
        self.policy = policy or SwingingPolicy()
        values = {"session": secrets.token_hex(4), "rate_hz": 20.0, "listen_s": 0.3} | config
        link = ClientConfig(
            host="127.0.0.1", port=port, advertise=OutgoingTopics().published,
            wrist_camera_topic=config.get("wrist_camera_topic"),
        )  # fmt: skip
        self.client = RosbridgeClient(link)
        self.loop = InferenceLoop(
            self.client, self.policy, LoopConfig(**values), Limits(), time.monotonic
        )
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="loop")

    def _run(self) -> None:
        try:
            self.loop.run()
        except BaseException as error:
            self.failure = error

    @property
    def session(self) -> str:
        return self.loop.metrics.session

    @property
    def state(self) -> str:
        return self.loop.metrics.state

    def holds(self, *reasons: str) -> int:
        return sum(self.loop.metrics.holds[reason] for reason in reasons)

    def sent(self) -> int:
        return self.loop.metrics.counters["trajectories"]

    def wait_driving(self, timeout_s: float = 10.0, ticks: int = 5) -> None:
        """Wait for `ticks` further trajectories."""
        wanted = self.sent() + ticks
        wait_until(
            lambda: self.sent() >= wanted, timeout_s, f"driving; {dict(self.loop.metrics.holds)}"
        )

    def wait_hold(self, *reasons: str, ticks: int = 3, timeout_s: float = 5.0) -> None:
        """Wait for `ticks` further holds for any of these reasons."""
        wanted = self.holds(*reasons) + ticks
        wait_until(
            lambda: self.holds(*reasons) >= wanted,
            timeout_s,
            f"hold for {' or '.join(reasons)}; {dict(self.loop.metrics.holds)}",
        )

    def __enter__(self) -> RunningLoop:
        self.client.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.loop.stop()
        self._thread.join(10)
        self.client.close()
        assert not self._thread.is_alive()
        if kind is None:
            assert self.failure is None


def inject(port: int, topic: str, *messages: object) -> None:
    """Publish `messages` on `topic`, each as it is: a dict as JSON, text as raw msg JSON."""
    with connect(f"ws://127.0.0.1:{port}", max_size=None) as link:
        for message in messages:
            text = message if isinstance(message, str) else json.dumps(message)
            link.send(f'{{"op":"publish","topic":"{topic}","msg":{text}}}')


class Tunnel:
    """A TCP link to `port` that can go dark: bytes stay where they are, and arrive afterwards."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._light = threading.Event()
        self._light.set()
        self._closing = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def go_dark(self) -> None:
        self._light.clear()

    def come_back(self) -> None:
        self._light.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._join, args=(near,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _join(self, near: socket.socket) -> None:
        self._light.wait()
        if self._closing:
            near.close()
            return
        far = socket.create_connection(("127.0.0.1", self._target))
        self._ends += [near, far]
        back = threading.Thread(target=self._pump, args=(far, near), daemon=True)
        self._threads.append(back)
        back.start()
        self._pump(near, far)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while chunk := source.recv(65536):
                self._light.wait()
                sink.sendall(chunk)
        except OSError:
            pass  # an end was closed: the other one learns it below
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Tunnel:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._light.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for end in self._ends:
            end.close()
