"""`crane-x7-remote replay DIR`: a recorded episode on the arm, or in front of a loop.

Every target passes the loop's checks, limits and trajectories, and the guard. With --to-loop the
episode is served as a robot, so that a loop can be fed without one.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import secrets
import sys
import threading
from typing import Annotated, Final

from crane_x7_remote import settings as settings_module
from crane_x7_remote import settings_values
from crane_x7_remote.errors import ExitCode, RecordError
from crane_x7_remote.inference.config import LoopConfig
from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.outgoing import OutgoingTopics
from crane_x7_remote.inference.targets import TargetConfig, TargetDriver, TargetError
from crane_x7_remote.record.episode_arm import EpisodeArm
from crane_x7_remote.record.replay import Replay, ReplayOptions, ReplayReport, refusals
from crane_x7_remote.record.session import StopFlag
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_remote.rosbridge.topics import STATUS_TOPIC, STRING
from crane_x7_remote.settings import Settings
from crane_x7_remote.sim_robot.robot import RobotConfig, SimRobot
from crane_x7_remote.sim_robot.server import ServerConfig
from crane_x7_remote.system import signals
from crane_x7_vla_rl.data import reading
from crane_x7_vla_rl.data.episode import DataError, Episode
from crane_x7_vla_rl.fields import argument_type, within
from crane_x7_vla_rl.robot import PREFIX
from crane_x7_vla_rl.types import WRIST

logger = logging.getLogger(__name__)

FLAGS: Final = (
    "rosbridge_host", "rosbridge_port", "rosbridge_token", "rosbridge_proxy", "peer_wait_timeout",
    "max_frame_age", "max_jump", "speed", "camera_topic", "wrist_camera_topic",
    "joint_states_topic", "arm_topic", "trajectory_topic", "gripper_action", "dry_run",
)  # fmt: skip
COMMON: Final = (
    "episode", "slower", "dry_run", "to_loop", "json", "rosbridge_host", "rosbridge_port",
    "rosbridge_token", "speed",
)  # fmt: skip
"""See command_line."""
RATE_HZ: Final = 30.0
HOLD_S: Final = 1.0
"""A refusal this long ends the replay."""
SHOWN: Final = 10
LEAVE_S: Final = 1.0
"""A served episode's end stays this long, for the loop's last ticks."""
SWITCH_INTERVAL_S: Final = 0.0005
"""See crane_x7_remote.inference.command."""
PORT = argument_type(Annotated[int, within(0, 65535)])
FACTOR = argument_type(Annotated[float, within(1, 100)])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `replay`."""
    add = parser.add_argument
    add("data", metavar="DIR", help="data set: a folder, or a Hub id")
    add("--episode", type=argument_type(Annotated[int, within(0, 10**9)]), default=0, metavar="N",
        help="number of the episode, from 0 (%(default)s)")  # fmt: skip
    add("--slower", type=FACTOR, default=1.0, metavar="FACTOR",
        help="replay FACTOR times slower than recorded (%(default)g)")  # fmt: skip
    add("--to-loop", type=PORT, nargs="?", const=9090, metavar="PORT",
        help="serve the episode as a robot on 127.0.0.1 (9090; 0 picks a free port)")  # fmt: skip
    add("--json", action="store_true", help="print the report as JSON")
    reading.add_arguments(parser)
    settings_module.add_flags(parser, FLAGS)


def run(args: argparse.Namespace) -> int:
    """Replay; returns 0 when the episode is over, or after a signal. Raises RecordError."""
    settings = settings_module.from_args(args)
    episode = _episode(args)
    stop = StopFlag(*signals.ending())
    if args.to_loop is not None:
        return _serve(args, settings, episode, stop)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    limits = Limits(max_jump_rad=settings.max_jump, speed=settings.speed)
    driver = TargetDriver(*_configs(settings, dry_run=settings.dry_run), limits)
    try:
        driver.start()
        if settings.dry_run:
            return _check(driver, episode, limits)
        options = ReplayOptions(args.slower)
        out = sys.stderr if args.json else sys.stdout
        report = Replay(driver, options, lambda: stop.is_set).run(
            episode, lambda text: print(text, file=out, flush=True)
        )
    except TargetError as error:
        raise RecordError(f"replay: {error}") from error
    finally:
        driver.close()
    if report is None:
        logger.info("stopped by a signal; the arm is at rest")
    else:
        print(json.dumps(report.as_json()) if args.json else _in_words(report))
    return ExitCode.OK


def _episode(args: argparse.Namespace) -> Episode:
    from crane_x7_vla_rl.data.source import open_source

    try:
        both = args.to_loop is not None
        source = open_source(args.data, reading=reading.from_args(args), all_cameras=both)
        if args.episode >= len(source):
            raise RecordError(
                f"{args.data}: has {len(source)} episodes, from 0; --episode is {args.episode}"
            )
        return source[args.episode]
    except DataError as error:
        raise RecordError(str(error)) from error


def _check(driver: TargetDriver, episode: Episode, limits: Limits) -> int:
    found = list(refusals(episode, driver.observe()[1], limits))
    if found:
        more = f"\n  … and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        listed = "".join(f"\n  {line}" for line in found[:SHOWN])
        raise RecordError(f"{episode.source}: would be refused:{listed}{more}")
    print(f"{episode.source}: {len(episode)} actions pass the checks; nothing was sent")
    return ExitCode.OK


def _in_words(report: ReplayReport) -> str:
    joint = report.worst_joint.removeprefix(PREFIX)
    return (
        f"replayed {report.frames} frames in {report.seconds:.1f} s; from the recording: at most"
        f" {report.worst_rad:.3f} rad ({joint}), mean {report.mean_rad:.3f}; at the end"
        f" {report.final_rad:.3f} rad from the last action"
    )


def _serve(args: argparse.Namespace, settings: Settings, episode: Episode, stop: StopFlag) -> int:
    ended = threading.Event()
    rate_hz = max(episode.fps, RATE_HZ)
    wrist_topic = _wrist_topic(settings, episode)
    config = RobotConfig(
        server=ServerConfig(port=args.to_loop),
        topics=settings.model_copy(update={"wrist_camera_topic": wrist_topic}),
        camera_rate_hz=episode.fps,
        camera_pose=None,
        description={"episode": episode.source},
    )
    # Joint states come at least at RATE_HZ, at a whole number of steps for each frame.
    steps = math.ceil(rate_hz / episode.fps)
    robot = SimRobot(config, lambda: EpisodeArm(episode, 1 / (steps * episode.fps), ended))
    with robot:
        print(
            f"ready: {episode.source} is served as a robot on 127.0.0.1 port {robot.port}; it"
            " begins when a loop listens: crane-x7-remote infer --dry-run"
            f" --rosbridge-host 127.0.0.1 --rosbridge-port {robot.port}",
            flush=True,
        )
        while not stop.is_set and not ended.wait(0.05):
            if robot.failure is not None:
                raise RecordError(f"replay --to-loop: {robot.failure}") from robot.failure
        if ended.is_set():
            robot.ended.wait(LEAVE_S)
            print(f"the episode is over: {len(episode)} frames")
    return ExitCode.OK


def _wrist_topic(settings: Settings, episode: Episode) -> str:
    """Return where the wrist camera's images go; empty if either is not there, and say so."""
    topic, has_images = settings.wrist_camera_topic, WRIST in episode.others
    if topic and not has_images:
        logger.warning("%s: has no camera %s; %s stays silent", episode.source, WRIST, topic)
    if has_images and not topic:
        logger.warning(
            "%s: its camera %s is not served; name its topic with WRIST_CAMERA_TOPIC, here and for"
            " the loop", episode.source, WRIST,
        )  # fmt: skip
    return topic if has_images else ""


def _configs(settings: Settings, *, dry_run: bool) -> tuple[ClientConfig, LoopConfig, TargetConfig]:
    topics = OutgoingTopics(
        arm=settings.arm_topic,
        trajectory=settings.trajectory_topic,
        action="",  # for older controllers, which move without the guard's checks
        gripper_action=settings.gripper_action,
    )
    client = ClientConfig(
        host=settings.rosbridge_host,
        port=settings.rosbridge_port,
        proxy=settings.rosbridge_proxy,
        token=settings_values.token_text(settings.rosbridge_token, "ROSBRIDGE_TOKEN"),
        camera_topic=settings.camera_topic,
        joint_states_topic=settings.joint_states_topic,
        instruction_topic=None,
        advertise={STATUS_TOPIC: STRING} | ({} if dry_run else topics.published),
    )
    loop = LoopConfig(
        session=secrets.token_hex(4),
        rate_hz=RATE_HZ,
        instruction="a replayed episode",
        max_frame_age_s=settings.max_frame_age,
        dry_run=dry_run,
        topics=topics,
        policy_failing_s=math.inf,  # before the first target there is none
    )
    wait_s = min(settings.peer_wait_timeout, 30.0)
    return client, loop, TargetConfig(hold_s=HOLD_S, connect_s=wait_s)
