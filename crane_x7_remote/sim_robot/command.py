"""`crane-x7-remote sim-robot`: a simulated CRANE-X7 behind rosbridge, until a signal.

Prints one line that starts with `ready` and names host and port when clients are served and the arm
moves. With `--guard` a guard process runs in front of it, and the line names its port too; with
`--view` a second line names the page that shows the robot. SIGTERM, SIGINT and SIGHUP end it
with exit code 0.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Annotated

from crane_x7_remote import settings
from crane_x7_remote.errors import ExitCode, PolicyError, SimulationError
from crane_x7_remote.sim_robot.arm import Arm, KinematicArm
from crane_x7_remote.sim_robot.arm_process import ProcessArm
from crane_x7_remote.sim_robot.maniskill_arm import ManiSkillArm, SceneConfig
from crane_x7_remote.sim_robot.robot import RobotConfig, SimRobot
from crane_x7_remote.sim_robot.server import ServerConfig
from crane_x7_remote.sim_robot.view import View
from crane_x7_remote.system import signals
from crane_x7_remote.system.parent_death import die_with
from crane_x7_vla_rl import camera_pose, scenes
from crane_x7_vla_rl.camera_pose import SIM_POSE, CameraPose
from crane_x7_vla_rl.fields import argument_type, within
from crane_x7_vla_rl.policies import about
from crane_x7_vla_rl.policies.base import PolicyLoadError
from crane_x7_vla_rl.scenes import COLOUR_NAMES, PICK_PLACE_ID, WorldConfig

logger = logging.getLogger(__name__)


OWN_FLAGS = (
    "task", "control_hz", "image_size", "home_noise_rad", "camera_shift_m", "camera_noise",
    "episode_s", "vary",
)  # fmt: skip
"""Scene flags that this command lacks or defines differently."""
SCENE = ("task", "colours", "spawn_range_m")
"""Values that --scene-of takes from a checkpoint; a flag overrides them."""
FLAGS = {name: "--" + name.replace("_", "-") for name in SCENE}
PORT = argument_type(Annotated[int, within(0, 65535)])
BACKLOG = argument_type(Annotated[int, within(0, 1_000_000)])
RATE_HZ = argument_type(Annotated[float, within(0.1, 1000)])
STOP_TIMEOUT_S = 2.0
POLL_S = 0.05
TOPICS = ("camera_topic", "wrist_camera_topic", "joint_states_topic", "arm_topic", "gripper_action")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `sim-robot`."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=PORT, default=9090, help="port; 0 picks a free port (%(default)s)")
    add("--ros-version", type=int, choices=(1, 2), default=2, metavar="N",
        help="ROS version whose type names and time keys are used, 1 or 2"
        " (%(default)s)")  # fmt: skip
    add("--backlog", type=BACKLOG, default=64, metavar="N",
        help="topic messages that may wait for a slow client; then the oldest is dropped."
        " 0: no limit, as in rosbridge itself (%(default)s)")  # fmt: skip
    add("--arm", choices=("maniskill", "kinematic"), default="maniskill",
        help="maniskill: physics and cameras; kinematic: neither, starts at once"
        " (%(default)s)")  # fmt: skip
    add("--scene-of", metavar="CHECKPOINT",
        help="take task, colours and spawn range from this policy, a folder or Hub id")  # fmt: skip
    add("--task", metavar="ID",
        help=f"gymnasium id of the scene (the checkpoint's, else {PICK_PLACE_ID})")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N",
        help="seed of the scene, which sets the cubes' positions (%(default)s)")  # fmt: skip
    scenes.add_arguments(parser, without=OWN_FLAGS, asked=SCENE)
    add("--image-size", type=_image_size, default=(640, 480), metavar="WIDTHxHEIGHT",
        help="size of the camera image (640x480)")  # fmt: skip
    add("--camera", choices=("base", "hand"), default="base",
        help="which camera is published: base (next to the table) or hand (on the gripper)"
        " (%(default)s); for both, --wrist-camera-topic")  # fmt: skip
    add("--camera-pose", dest="base_camera_pose", type=_camera_pose, default=SIM_POSE,
        metavar="FILE",
        help="pose of the base camera, in the format of configs/camera_pose.yaml")  # fmt: skip
    add("--camera-rate", type=RATE_HZ, default=30.0, metavar="HZ",
        help="rate of the camera (%(default)g)")  # fmt: skip
    add("--control-rate", type=RATE_HZ, default=30.0, metavar="HZ",
        help="rate of the arm's steps and of joint states (%(default)g)")  # fmt: skip
    add("--jpeg-quality", type=int, choices=range(1, 101), default=90, metavar="1-100",
        help="quality of the camera's JPEGs (%(default)s)")  # fmt: skip
    add("--clock-offset-s", type=float, default=0.0, metavar="S",
        help="offset of the robot's clock from this machine's (%(default)g)")  # fmt: skip
    add("--path-follows-clock", action="store_true",
        help="sample the running path at the robot's clock, as ros2_control does: when that clock"
        " jumps, the arm jumps")  # fmt: skip
    add("--guard", type=PORT, nargs="?", const=9091, metavar="PORT",
        help="also run the guard, on 127.0.0.1 (9091; 0 picks a free port)")  # fmt: skip
    add("--view", type=PORT, nargs="?", const=8080, metavar="PORT",
        help="show camera, task and joints on a page at http://127.0.0.1:PORT (8080; 0 picks a free"
        " port)")  # fmt: skip
    settings.add_flags(parser, TOPICS)


def run(args: argparse.Namespace) -> int:
    """Serve the robot until a signal; return 0. Raises SimulationError."""
    if args.camera_rate > args.control_rate:
        raise SimulationError(
            f"--camera-rate {args.camera_rate:g} is above --control-rate {args.control_rate:g};"
            " the camera can take at most one image per step: lower --camera-rate"
        )
    _read_scene(args)
    arm_maker = _arm_maker(args)
    stop = _StopOnSignal()
    with contextlib.ExitStack() as stack:
        view = None if args.view is None else stack.enter_context(View(args.view))
        robot = SimRobot(_config(args), arm_maker)
        stack.callback(robot.close, STOP_TIMEOUT_S)
        robot.start(is_cancelled=stop)
        guard, place = None, ""
        if args.guard is not None and not stop():
            guard = stack.enter_context(_Guard(args, robot.port))
            place = f", guard on port {guard.port}"
        if view is not None and not stop():
            view.watch(_own_address(args.host), robot.port, settings.from_args(args))
            stack.callback(view.unwatch)
        if not stop():
            served = f"{args.host} port {robot.port}{place}"
            # One write, so that no line of the log comes between the port and the line's end.
            print(f"ready: sim-robot serves rosbridge on {served}\n", end="", flush=True)
            if view is not None:
                print(f"view: {view.url}", flush=True)
        while not stop():
            if robot.ended.wait(POLL_S):
                raise SimulationError(f"sim-robot failed: {robot.failure}") from robot.failure
            if guard is not None and not stop():  # Ctrl-C reaches the guard as well
                guard.check()
        logger.info("stopping on a signal")
    return ExitCode.OK


def _read_scene(args: argparse.Namespace) -> None:
    """Fill in the scene of --scene-of, else the default one, for flags that are not given."""
    given = {name: value for name in SCENE if (value := getattr(args, name)) is not None}
    defaults = {
        "task": PICK_PLACE_ID,
        "colours": COLOUR_NAMES,
        "spawn_range_m": WorldConfig.spawn_range_m,
    }
    try:
        said = {} if args.scene_of is None else about.said_by(args.scene_of)
    except PolicyLoadError as error:
        raise PolicyError(f"--scene-of: {error}") from error
    if args.scene_of is not None and not said.keys() & {*SCENE}:
        raise PolicyError(
            f"--scene-of {args.scene_of}: its scene is unknown, expected skills.json or"
            " train_config.yaml of `train`; give --task and --colours instead"
        )
    vars(args).update(about.choose(given, said, defaults, FLAGS).values)


class _Guard:
    """`crane-x7-remote guard` in front of this robot; a context manager that ends it."""

    def __init__(self, args: argparse.Namespace, port: int) -> None:
        """Start it and wait for its `ready`; raises SimulationError."""
        upstream = f"{_own_address(args.host)}:{port}"
        flags = {"guard_listen": f"127.0.0.1:{args.guard}", "guard_upstream": upstream}
        flags |= {name: getattr(args, name) for name in TOPICS if getattr(args, name) is not None}
        words = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "crane_x7_remote", "guard", "--log-level=warning", *words],
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=die_with(os.getpid()),
        )
        assert self._process.stdout is not None
        ready = re.search(r"port (\d+)", self._process.stdout.readline())
        if ready is None:
            raise SimulationError(f"the guard ended with exit code {self._process.wait()}")
        self.port = int(ready[1])

    def check(self) -> None:
        """Raise SimulationError if it has ended."""
        code = self._process.poll()
        if code is not None:
            raise SimulationError(f"the guard ended with exit code {code}")

    def __enter__(self) -> _Guard:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT_S)
        self._process.kill()
        self._process.communicate()


class _StopOnSignal:
    """True after a signal. A plain flag: the handler runs between two instructions of the
    main thread, which may then hold the lock of any threading.Event."""

    def __init__(self) -> None:
        self._is_asked = False
        for number in signals.ending():
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: types.FrameType | None) -> None:
        del number, frame
        self._is_asked = True

    def __call__(self) -> bool:
        return self._is_asked


def _own_address(host: str) -> str:
    """Return the address at which this machine reaches a server that listens on `host`."""
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host


def _config(args: argparse.Namespace) -> RobotConfig:
    return RobotConfig(
        server=ServerConfig(host=args.host, port=args.port, backlog=args.backlog or None),
        topics=settings.from_args(args),
        ros_version=args.ros_version,
        camera_rate_hz=args.camera_rate,
        clock_offset_s=args.clock_offset_s,
        path_follows_clock=args.path_follows_clock,
        camera_pose=replace(args.base_camera_pose, size_px=None) if args.camera == "base" else None,
        description={"task": args.task, "seed": args.seed, "camera": args.camera},
    )


def _arm_maker(args: argparse.Namespace) -> Callable[[], Arm]:
    """Return the function that creates the arm of the flags; it is called on the arm's thread."""
    if args.arm == "kinematic":
        return lambda: KinematicArm(period_s=1 / args.control_rate)

    misfit = args.base_camera_pose.misfit(*args.image_size)
    if misfit is not None:
        raise SimulationError(f"--camera-pose with --image-size: {misfit}")
    scene = SceneConfig(
        task=args.task,
        seed=args.seed,
        colours=tuple(args.colours),
        spawn_range_m=args.spawn_range_m,
        camera=args.camera,
        has_wrist_camera=bool(settings.from_args(args).wrist_camera_topic),
        base_camera=args.base_camera_pose.camera(*args.image_size),
        image_size=args.image_size,
        control_rate_hz=args.control_rate,
        jpeg_quality=args.jpeg_quality,
        render=args.render,
    )
    return lambda: ProcessArm(partial(ManiSkillArm, scene))


def _camera_pose(text: str) -> CameraPose:
    try:
        return replace(camera_pose.read(text), lens=None)  # what it draws is rectified
    except camera_pose.CameraPoseError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _image_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{2,4})x(\d{2,4})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}, expected WIDTHxHEIGHT, such as 640x480")
    return int(match[1]), int(match[2])
