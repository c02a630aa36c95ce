"""The simulated robot: an arm in real time behind a rosbridge server.

Clients' messages → controllers, on the server's event loop (one thread). The arm moves on another
thread, at absolute deadlines; one lock protects the controllers between the two. Camera, joint
states and `/sim/state` → server, stamped on the robot's own clock.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any

import numpy as np

from crane_x7_remote.errors import RemoteError, SimulationError
from crane_x7_remote.rosbridge import messages, protocol
from crane_x7_remote.rosbridge.protocol import brief
from crane_x7_remote.rosbridge.topics import CAMERA_POSE_TOPIC, STRING
from crane_x7_remote.settings import Settings
from crane_x7_remote.sim_robot.arm import Arm
from crane_x7_remote.sim_robot.controller import (
    GripperController,
    GripperResult,
    OnUpdates,
    Refusal,
    TrajectoryController,
    TrajectoryRefused,
)
from crane_x7_remote.sim_robot.gripper_topics import GoalStatus, GripperTopics, result_values
from crane_x7_remote.sim_robot.ros_types import convert
from crane_x7_remote.sim_robot.server import RosbridgeServer, ServerConfig
from crane_x7_remote.sim_robot.session import GoalKey, Operation
from crane_x7_vla_rl.camera_pose import SIM_POSE, CameraPose
from crane_x7_vla_rl.file_errors import why
from crane_x7_vla_rl.robot import ARM_DOF, FINGER_B, HOME_RAD, JOINT_NAMES
from crane_x7_vla_rl.types import JointState

logger = logging.getLogger(__name__)

SIM_STATE_TOPIC = "/sim/state"
SIM_HAND_TOPIC = "/sim/hand"
"""std_msgs/String with the colour of a cube: a hand puts it back at its start position."""
SIM_SCENE_TOPIC = "/sim/scene"
"""std_msgs/Int32 with a seed: a hand puts cubes and plate where the scene of this seed has them;
the arm stays. `/sim/state` then has this `seed`, and one more `arranged`."""
SIM_CLOCK_STEP_TOPIC = "/sim/clock_step"
"""std_msgs/Float64 with seconds, positive or negative: steps the robot's clock by them."""
SIM_TARGETS_TOPIC = "/sim/targets"
"""sensor_msgs/JointState: targets of both controllers at a step, stamped like the joint states."""
SIM_VIEW_TOPIC = "/sim/view/compressed"
"""sensor_msgs/CompressedImage of a second camera that shows the whole arm; for people, never for a
policy. It is rendered only while a client subscribes."""
LATEST_TIME_S = 2.0**31 - 1
"""Latest ROS stamp."""
MOST_HANDS = 16
"""Cubes that a hand may put back in one step of the arm."""
TOPIC_CLIENT = 0
"""Session in the GoalKey of a goal from a topic (ROS 1); sessions count from 1."""
SIM_STATE_HZ = 5.0
SIM_VIEW_HZ = 15.0
LATE_VIEWS = 7
"""Images of the view that are skipped while a busy machine delays the arm."""
START_TIMEOUT_S = 180.0
"""A simulation is imported and built in ten seconds, on a busy machine in more."""
MOST_STEPS_AT_ONCE = 4
"""Steps executed together after a late wake-up; more are skipped, so that the arm falls behind."""
GRIPPER_ACTION_TYPE = "control_msgs/action/GripperCommand"

PUBLISHED_ORDER = (5, 8, 2, 0, 7, 4, 6, 1, 3)
"""Order of /joint_states, as mixed as the real joint_state_broadcaster's; 8 is finger B."""


@dataclass(frozen=True)
class RobotConfig:
    """Names, rates and the clock of the robot."""

    server: ServerConfig = field(default_factory=ServerConfig)
    topics: Settings = field(default_factory=Settings)
    """Only the topic names and the gripper's action name are read."""
    ros_version: messages.RosVersion = 2
    camera_rate_hz: float = 30.0
    clock_offset_s: float = 0.0
    """Added to the robot's clock."""
    path_follows_clock: bool = False
    """See TrajectoryController."""
    camera_pose: CameraPose | None = SIM_POSE
    """Published on CAMERA_POSE_TOPIC; None: the camera moves."""
    description: Mapping[str, Any] = field(default_factory=dict)
    """Copied into /sim/state: task, seed."""


class SimRobot:
    """A context manager: the robot is served from `start` to `close`."""

    def __init__(
        self,
        config: RobotConfig,
        make_arm: Callable[[], Arm],
        clock: Callable[[], float] = time.monotonic,
        on_updates: OnUpdates | None = None,
    ) -> None:
        """`make_arm` is called on the arm's own thread; `on_updates` (see TrajectoryController) on
        that thread and on the server's, one call at a time."""
        self._config = config
        self._make_arm = make_arm
        self._clock = clock
        self._on_updates = on_updates
        is_ros_1 = config.ros_version == 1
        self._gripper_topics = GripperTopics(config.topics.gripper_action) if is_ros_1 else None
        self._topics = self._topic_types()
        self._epoch_s = time.time() - clock() + config.clock_offset_s
        self._stepped_s = 0.0
        self.server = RosbridgeServer(self, config.server, clock, config.ros_version)
        if config.camera_pose is not None:
            told = messages.string(config.camera_pose.to_json())
            self.server.latch(CAMERA_POSE_TOPIC, told)
        self._lock = threading.Lock()
        self._controller: TrajectoryController | None = None
        self._gripper: GripperController | None = None
        self._goal: GoalKey | None = None
        self._to_put_back: list[str] = []
        self._to_arrange: int | None = None
        self._scene: dict[str, Any] = {**config.description, "arranged": 0}
        """What /sim/state says besides what it measures."""
        self._target_rad = HOME_RAD.copy()
        self._served, self._moving = threading.Event(), threading.Event()
        self._stop = threading.Event()
        self.ended = threading.Event()
        """Set when a part of the robot has ended, by `close` or by a failure: see `failure`."""
        self.failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._guard, args=(run,), name=name, daemon=True)
            for name, run in (("server", self._serve), ("arm", self._move))
        ]

    def start(
        self,
        timeout_s: float = START_TIMEOUT_S,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start and wait until clients are served and the arm moves, or until `is_cancelled`.

        Raises SimulationError.
        """
        deadline = self._clock() + timeout_s
        for thread, ready in zip(self._threads, (self._served, self._moving), strict=True):
            thread.start()
            while not ready.wait(0.02):
                if is_cancelled():
                    return
                if self.ended.is_set() or self._clock() > deadline:
                    self.close()
                    raise SimulationError(self._explain_failure(timeout_s)) from self.failure

    def close(self, timeout_s: float = 10.0) -> None:
        """Stop both threads, waiting for each at most `timeout_s`; may be called repeatedly."""
        self._stop.set()
        self.ended.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout_s)

    def __enter__(self) -> SimRobot:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The port on which clients are served."""
        return self.server.port

    def time_s(self) -> float:
        """Return the time on the robot's clock."""
        return self._steady_s() + self._stepped_s

    def _steady_s(self) -> float:
        """Return the time on the robot's clock as if it had never been stepped."""
        return self._clock() + self._epoch_s

    def step_clock(self, seconds: float) -> None:
        """Step the robot's clock, as NTP or a person would; call it from any thread.

        Raises RemoteError for a time that a ROS stamp cannot hold.
        """
        with self._lock:
            now_s = self._steady_s()
            if not 0 <= now_s + self._stepped_s + seconds <= LATEST_TIME_S:
                raise RemoteError(
                    f"a step of {seconds:g} s leaves the range of ROS time, 0 to"
                    f" {LATEST_TIME_S:.0f} s"
                )
            if self._controller is not None:
                self._controller.step_clock(seconds, now_s)
            self._stepped_s += seconds
        logger.info("the robot's clock was stepped by %+g s", seconds)

    @property
    def topics(self) -> Mapping[str, str]:
        """See server.Robot."""
        return self._topics

    def _topic_types(self) -> dict[str, str]:
        names, version = self._config.topics, self._config.ros_version
        packages = {
            names.camera_topic: "sensor_msgs/CompressedImage",
            names.joint_states_topic: "sensor_msgs/JointState",
            names.arm_topic: "trajectory_msgs/JointTrajectory",
            CAMERA_POSE_TOPIC: STRING,
            SIM_STATE_TOPIC: "std_msgs/String",
            SIM_TARGETS_TOPIC: "sensor_msgs/JointState",
            SIM_VIEW_TOPIC: "sensor_msgs/CompressedImage",
            SIM_HAND_TOPIC: "std_msgs/String",
            SIM_SCENE_TOPIC: "std_msgs/Int32",
            SIM_CLOCK_STEP_TOPIC: "std_msgs/Float64",
        }
        if names.wrist_camera_topic:
            packages[names.wrist_camera_topic] = "sensor_msgs/CompressedImage"
        if self._gripper_topics is not None:
            packages |= self._gripper_topics.types
        return {topic: messages.type_name(kind, version) for topic, kind in packages.items()}

    def receive(self, topic: str, message: Operation) -> None:
        """See server.Robot: trajectories (a refused one is counted and logged), the gripper's goals
        on ROS 1, names of cubes to put back, seeds of scenes, and steps of the clock."""
        gripper = self._gripper_topics
        if topic == SIM_HAND_TOPIC:
            self._use_hand(messages.instruction(message))
        elif topic == SIM_SCENE_TOPIC:
            self._arrange(message["data"])
        elif topic == SIM_CLOCK_STEP_TOPIC:
            self.step_clock(message["data"])
        elif topic == self._config.topics.arm_topic:
            self._take_trajectory(message)
        elif gripper is not None and topic == gripper.goal:
            self._take_topic_goal(gripper, message)
        elif gripper is not None and topic == gripper.cancel:
            goal = self._goal
            if goal is not None and gripper.is_cancelled(goal.goal_id, message):
                self.cancel_goal(goal)

    def refuse(self, topic: str) -> None:
        """See server.Robot."""
        if topic == self._config.topics.arm_topic and self._controller is not None:
            with self._lock:
                self._controller.count_refusal(Refusal.MALFORMED)

    def _use_hand(self, colour: str) -> None:
        with self._lock:
            if len(self._to_put_back) >= MOST_HANDS:
                raise RemoteError(f"{MOST_HANDS} cubes are being put back; try again later")
            self._to_put_back.append(colour)

    def _arrange(self, seed: int) -> None:
        if seed < 0:
            raise RemoteError(f"{SIM_SCENE_TOPIC}: {seed}, expected a seed of 0 or more")
        with self._lock:
            self._to_arrange = seed

    def _take_trajectory(self, message: Operation) -> None:
        try:
            trajectory = messages.trajectory(message)
        except messages.MessageError:
            self.refuse(self._config.topics.arm_topic)
            raise
        with self._lock:
            controller = self._controller
            if controller is None:
                raise SimulationError("the arm is still starting; send the trajectory again later")
            try:
                controller.accept(trajectory, self._steady_s())
            except TrajectoryRefused as refusal:
                logger.debug("%s", refusal)

    def _take_topic_goal(self, gripper: GripperTopics, message: Operation) -> None:
        """Start a goal of ROS 1; an invalid goal is answered only on the result topic."""
        goal = gripper.read_goal(message, self.time_s())
        key = GoalKey(TOPIC_CLIENT, self._config.topics.gripper_action, goal.id)
        gripper.note(goal, GoalStatus.ACTIVE)
        try:
            self.start_goal(key, GRIPPER_ACTION_TYPE, goal.args)
        except RemoteError as error:
            logger.debug("gripper goal %r refused: %s", goal.id, error)
            gripper.note(goal, GoalStatus.REJECTED, str(error))
            now_s = self.time_s()
            result = gripper.end(goal.id, GoalStatus.REJECTED, GripperResult(0.0), now_s)
            self.server.publish_threadsafe(gripper.result, result)

    def start_goal(self, key: GoalKey, action_type: str, args: Operation) -> None:
        """See server.Robot."""
        known = self._config.topics.gripper_action
        if key.action != known or not messages.same_type(action_type, GRIPPER_ACTION_TYPE):
            raise RemoteError(
                f"action {key.action!r} of type {brief(action_type)} is unknown;"
                f" known: {known!r} of type {GRIPPER_ACTION_TYPE!r}"
            )
        position_rad = _goal_position(args, self._config.ros_version)
        with self._lock:
            if self._gripper is None:
                raise SimulationError("the gripper is still starting; send the goal again later")
            try:
                result = self._gripper.accept(position_rad, self._steady_s())
            except ValueError as error:
                raise RemoteError(str(error)) from error
            replaced, self._goal = self._goal, key
        self._finish_goal(replaced, result)

    def cancel_goal(self, key: GoalKey) -> None:
        """See server.Robot."""
        with self._lock:
            if self._goal != key or self._gripper is None:
                return
            result = self._gripper.cancel()
            self._goal = None
        self._finish_goal(key, result)

    def joint_message(self, state: JointState, stamp_s: float) -> dict[str, Any]:
        """Return /joint_states: nine joints, in the robot's own order."""
        names = (*JOINT_NAMES, FINGER_B.name)
        position = np.append(state.position_rad, state.position_rad[-1])
        velocity = np.append(state.velocity_rad_s, state.velocity_rad_s[-1])
        order = list(PUBLISHED_ORDER)
        return messages.joint_state_to_ros(
            [names[index] for index in order],
            position[order],
            velocity[order],
            stamp_s,
            self._config.ros_version,
        )

    def _guard(self, run: Callable[[], None]) -> None:
        """Run one thread; store the error that ends it in `failure`, and set `ended`."""
        try:
            run()
        except Exception as error:
            if not self._stop.is_set():
                logger.debug("a thread of the simulated robot failed", exc_info=True)
            self.failure = self.failure or error
        finally:
            self._stop.set()
            self.ended.set()

    def _explain_failure(self, timeout_s: float) -> str:
        server, error = self._config.server, self.failure
        where = f"sim-robot on {server.host}:{server.port}"
        if error is None:
            return f"{where} was not ready after {timeout_s:.0f} s"
        if isinstance(error, OSError) and not self._served.is_set():
            return f"{where} cannot listen: {why(error)}; check --host and --port (0: a free one)"
        return f"{where}: {error}"

    def _serve(self) -> None:
        asyncio.run(self._serve_until_stopped())

    async def _serve_until_stopped(self) -> None:
        await self.server.start()
        self._served.set()
        try:
            while not self._stop.is_set():
                await asyncio.sleep(0.05)
        finally:
            await self.server.stop()

    def _move(self) -> None:
        """Create the arm and step it in real time until `close`."""
        arm = self._make_arm()
        try:
            start = arm.joints().position_rad
            with self._lock:
                self._controller = TrajectoryController(
                    start[:ARM_DOF],
                    self._steady_s(),
                    self._on_updates,
                    self._config.path_follows_clock,
                )
                self._controller.step_clock(self._stepped_s, self._steady_s())
                self._gripper = GripperController(float(start[-1]))
            self._pace(arm)
        finally:
            arm.close()

    def _pace(self, arm: Arm) -> None:
        """Step and publish at absolute deadlines; of steps executed together only the last is
        published."""
        start_s, steps = self._clock(), 0
        frames = views = states = 0
        self._moving.set()
        while True:
            deadline_s = start_s + (steps + 1) * arm.period_s
            if self._stop.wait(max(0.0, deadline_s - self._clock())):
                return
            due = max(1, int((self._clock() - start_s) / arm.period_s) - steps)
            steps += due
            for _ in range(min(due, MOST_STEPS_AT_ONCE)):
                stamp_s = self._step(arm)
            elapsed_s = steps * arm.period_s
            self._publish_joints(arm, stamp_s)
            is_rendered = False
            if int(elapsed_s * self._config.camera_rate_hz + 1e-6) > frames:
                frames = int(elapsed_s * self._config.camera_rate_hz + 1e-6)
                is_rendered = self._publish_camera(arm, stamp_s)
            due_views = int(elapsed_s * SIM_VIEW_HZ + 1e-6) - views
            # Two images in one step would delay the arm: the view waits for a step without one, and
            # longer if the arm is already late.
            if due_views > (LATE_VIEWS if due > 1 else int(is_rendered)):
                views += due_views
                self._publish_view(arm, stamp_s)
            if int(elapsed_s * SIM_STATE_HZ) > states:
                states = int(elapsed_s * SIM_STATE_HZ)
                self._publish_state(arm, stamp_s)

    def _step(self, arm: Arm) -> float:
        """Advance controllers and arm to now; return the current time on the robot's clock."""
        with self._lock:
            assert self._controller is not None
            assert self._gripper is not None
            steady_s = self._steady_s()
            stamp_s = steady_s + self._stepped_s
            target = np.append(self._controller.update(steady_s), self._gripper.target_rad)
            to_put_back, self._to_put_back = self._to_put_back, []
            seed, self._to_arrange = self._to_arrange, None
        self._target_rad = target
        if seed is not None:
            arm.arrange(seed)
            arranged = int(self._scene["arranged"]) + 1
            self._scene = {**self._scene, "seed": seed, "arranged": arranged}
        for colour in to_put_back:
            arm.put_back(colour)
        arm.step(target)
        state = arm.joints()
        with self._lock:
            result = self._gripper.update(
                float(state.position_rad[-1]), float(state.velocity_rad_s[-1]), steady_s
            )
            finished = self._goal
            if result is not None:
                self._goal = None
        self._finish_goal(finished, result)
        return stamp_s

    def _finish_goal(self, key: GoalKey | None, result: GripperResult | None) -> None:
        if key is None or result is None:
            return
        topics = self._gripper_topics
        if topics is not None:
            ended = GoalStatus.PREEMPTED if result.preempted else GoalStatus.SUCCEEDED
            message = topics.end(key.goal_id, ended, result, self.time_s())
            self.server.publish_threadsafe(topics.result, message)
            return
        status = protocol.GOAL_CANCELED if result.preempted else protocol.GOAL_SUCCEEDED
        self.server.finish_goal_threadsafe(key, result_values(result), status)

    def _publish_joints(self, arm: Arm, stamp_s: float) -> None:
        topic = self._config.topics.joint_states_topic
        if self.server.is_wanted(topic):
            self.server.publish_threadsafe(topic, self.joint_message(arm.joints(), stamp_s))
        if self.server.is_wanted(SIM_TARGETS_TOPIC):
            wanted = JointState(self._target_rad, np.zeros_like(self._target_rad))
            self.server.publish_threadsafe(SIM_TARGETS_TOPIC, self.joint_message(wanted, stamp_s))

    def _publish_camera(self, arm: Arm, stamp_s: float) -> bool:
        """Publish an image of each camera if a client would get it; return whether one was
        rendered."""
        topics = self._config.topics
        is_base = self._publish_image(topics.camera_topic, arm.jpeg, stamp_s)
        if not topics.wrist_camera_topic:
            return is_base
        return self._publish_image(topics.wrist_camera_topic, arm.wrist_jpeg, stamp_s) or is_base

    def _publish_image(self, topic: str, draw: Callable[[], bytes], stamp_s: float) -> bool:
        if not self.server.is_wanted(topic, within_s=1 / self._config.camera_rate_hz):
            return False
        message = messages.compressed_image(draw(), stamp_s, self._config.ros_version)
        self.server.publish_threadsafe(topic, message)
        return True

    def _publish_view(self, arm: Arm, stamp_s: float) -> None:
        if self.server.is_wanted(SIM_VIEW_TOPIC, within_s=1 / SIM_VIEW_HZ):
            message = messages.compressed_image(arm.view_jpeg(), stamp_s, self._config.ros_version)
            self.server.publish_threadsafe(SIM_VIEW_TOPIC, message)

    def _publish_state(self, arm: Arm, stamp_s: float) -> None:
        gripper = self._gripper_topics
        if gripper is not None and self.server.is_wanted(gripper.status):
            self.server.publish_threadsafe(gripper.status, gripper.status_array(stamp_s))
        if not self.server.is_wanted(SIM_STATE_TOPIC):
            return
        assert self._controller is not None
        with self._lock:
            report = asdict(self._controller.report)
        state = {
            **self._scene,
            "time_s": stamp_s,
            "cubes": arm.scene(),
            "controller": report,
        }
        self.server.publish_threadsafe(SIM_STATE_TOPIC, messages.string(json.dumps(state)))


def _goal_position(args: Operation, version: messages.RosVersion) -> float:
    """Return the position in the arguments of a GripperCommand goal; raise RemoteError."""
    goal = convert("control_msgs/GripperCommandGoal", args, version, 0.0)
    position_rad: float = goal["command"]["position"]
    return position_rad
