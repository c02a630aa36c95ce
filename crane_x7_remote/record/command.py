"""`crane-x7-remote record DIR`: the arm's episodes into a LeRobot data set, until `q` or a signal.

The robot's topics, or with --from-feed a loop's feed on standard input → episodes. Space, the topic
/vla/record or a dashboard start, stop and discard them. Every finished episode is safe on the disk,
whatever ends this process; `--resume` continues, and completes what a killed run has left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import queue
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from crane_x7_remote import settings as settings_module
from crane_x7_remote import settings_values
from crane_x7_remote.errors import (
    ExitCode,
    OutputError,
    PeerUnreachableError,
    RecordError,
    SettingsError,
)
from crane_x7_remote.record import feed_input, keys
from crane_x7_remote.record.events import BASE, Event
from crane_x7_remote.record.recorder import Recorder, RecorderOptions
from crane_x7_remote.record.robot_input import RobotInput, RobotTopics
from crane_x7_remote.record.session import Session, SessionOptions, StopFlag, Summary
from crane_x7_remote.record.writing import EpisodeWriter, Observer
from crane_x7_remote.rosbridge import messages
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_remote.rosbridge.topics import RECORD_STATUS_TOPIC, STRING
from crane_x7_remote.settings import Settings
from crane_x7_remote.system import signals
from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.data.files import read_json
from crane_x7_vla_rl.data.lerobot import layout, recover
from crane_x7_vla_rl.fields import Count, argument_type, within
from crane_x7_vla_rl.log_text import shown

logger = logging.getLogger(__name__)

FLAGS: Final = (
    "rosbridge_host", "rosbridge_port", "rosbridge_token", "rosbridge_proxy", "peer_wait_timeout",
    "joint_states_topic", "camera_topic", "arm_topic", "trajectory_topic", "instruction_topic",
)  # fmt: skip
COMMON: Final = (
    "fps", "camera", "action", "leader_topic", "instruction", "resume", "episodes", "push",
    "rosbridge_host", "rosbridge_port", "rosbridge_token",
)  # fmt: skip
"""See command_line."""
LEADER_TOPIC: Final = "/teleop/leader/state"
RATE_HZ = argument_type(Annotated[float, within(0.5, 120)])
SECONDS = argument_type(Annotated[float, within(0.1, 86_400)])
DEFAULT_FPS: Final = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `record`."""
    add = parser.add_argument
    add("folder", type=Path, help="folder of the LeRobot data set")
    add("--fps", type=RATE_HZ, metavar="HZ",
        help="frames per second (10; --from-feed: the loop's rate)")  # fmt: skip
    add("--camera", type=_camera, action="append", metavar="NAME=TOPIC",
        help="a camera; repeat it for two, such as base=/a/compressed wrist=/b/compressed; base is"
        " required [base=CAMERA_TOPIC]")  # fmt: skip
    add("--action", choices=("commands", "leader", "next"), default="commands",
        help="what counts as the action: trajectories that drive the arm, the joints of a leader"
        " arm, or the joints measured one frame later (%(default)s)")  # fmt: skip
    add("--leader-topic", default=LEADER_TOPIC, metavar="TOPIC",
        help="joint states of the leader arm (%(default)s)")  # fmt: skip
    add("--instruction", metavar="TEXT",
        help="task of the episodes [as INSTRUCTION_TOPIC says]")  # fmt: skip
    add("--resume", action="store_true", help="add to the data set in the folder")
    add("--episodes", type=argument_type(Count), metavar="N", help="end after N new episodes")
    add("--start", action="store_true", help="start the first episode at once")
    add("--longest", type=SECONDS, default=300.0, metavar="S",
        help="an episode ends after S seconds (%(default)g)")  # fmt: skip
    add("--gap", type=SECONDS, default=0.5, metavar="S",
        help="an episode ends where a stream is silent for S seconds (%(default)g)")  # fmt: skip
    add("--on-gap", choices=("keep", "discard"), default="keep",
        help="keep an episode up to the gap, or discard it (%(default)s)")  # fmt: skip
    add("--wait", type=SECONDS, default=30.0, metavar="S",
        help="longest wait for the first message of each topic (%(default)g)")  # fmt: skip
    add("--push", metavar="OWNER/NAME", help="upload the data set to the Hub at the end, private")
    add("--upload-only", action="store_true",
        help="record nothing: --push what the folder holds, such as after an upload that failed;"
        " needs no robot")  # fmt: skip
    add("--rerun", type=Path, metavar="FILE.rrd",
        help="also write the episodes for the Rerun viewer (pip install rerun-sdk)")  # fmt: skip
    add("--from-feed", action="store_true",
        help="record a loop, from its feed on standard input: `infer --record`")  # fmt: skip
    add("--json", action="store_true", help="print the summary as JSON")
    settings_module.add_flags(parser, FLAGS)


@dataclass(frozen=True)
class _Source:
    """Where events come from."""

    options: RecorderOptions
    client: ClientConfig
    topics: RobotTopics
    begin: Callable[[queue.SimpleQueue[Event]], object] = lambda _: None
    """Starts further input, once the recorder is ready for it."""


def run(args: argparse.Namespace) -> int:
    """Record; returns 0. Raises RecordError for what is missing, OutputError for the disk."""
    if args.upload_only:
        return _upload(args)
    settings = settings_module.from_args(args)
    if args.instruction is not None:
        args.instruction = _instruction(args.instruction)
    source = _feed_source(args, settings) if args.from_feed else _robot_source(args, settings)
    resume = args.resume or args.from_feed
    observe = _rerun_observer(args.rerun)
    if args.push is not None:
        _check_push(args.push)
    kept = _kept(args.folder, resume)
    _check_cameras(args.folder, source.options.cameras)
    stop = StopFlag(*((signal.SIGTERM,) if args.from_feed else signals.ending()))
    writer = EpisodeWriter(args.folder, resume, kept, observe)
    try:
        summary = _record(args, source, writer, stop)
    except BaseException:
        writer.close_waiting()
        raise
    return _end(args, writer, summary)


def _record(
    args: argparse.Namespace, source: _Source, writer: EpisodeWriter, stop: StopFlag
) -> Summary:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    out = sys.stderr if args.json else sys.stdout

    def say(text: str) -> None:
        print(shown(text, 1000), file=out, flush=True)

    recorder = Recorder(source.options, writer, say)
    limits = SessionOptions(args.episodes, args.wait, args.start)
    with contextlib.ExitStack() as stack:
        robot = stack.enter_context(RobotInput(source.client, source.topics, events))
        if not args.from_feed:
            _wait_connected(robot, settings_module.from_args(args).peer_wait_timeout, stop)
        source.begin(events)
        session = Session(recorder, writer, events, limits, robot.tell, robot.refused.get)
        if args.from_feed:
            say(f"records to {args.folder} at {source.options.fps:g} frames/s")
        elif session.wait(stop):
            keyed = stack.enter_context(keys.key_orders(events, lambda: recorder.is_recording))
            how = keys.HELP if keyed else "start, stop and discard on /vla/record"
            say(f"ready: records to {args.folder} at {source.options.fps:g} frames/s; {how}")
        summary = session.run(stop)
    if recorder.failure is not None:
        raise OutputError(recorder.failure)
    return summary


def _wait_connected(robot: RobotInput, timeout_s: float, stop: StopFlag) -> None:
    """Wait until rosbridge answers, or for a signal; raises PeerUnreachableError."""
    deadline_s = time.monotonic() + timeout_s
    while not stop.is_set and not robot.client.link.connected:
        left_s = deadline_s - time.monotonic()
        try:
            robot.client.wait_connected(max(0.0, min(0.1, left_s)))
        except PeerUnreachableError:
            if left_s <= 0:
                raise


def _end(args: argparse.Namespace, writer: EpisodeWriter, summary: Summary) -> int:
    try:
        writer.close()
    except DataError as error:
        raise OutputError(str(error)) from error
    print(json.dumps(summary.as_json()) if args.json else summary.in_words(), flush=True)
    if args.push is not None and summary.kept:
        logger.info("%s", _push(args))
    return ExitCode.OK


def _upload(args: argparse.Namespace) -> int:
    """Upload what the folder holds; raises RecordError and OutputError."""
    if args.push is None:
        raise RecordError("--upload-only: where to? Give --push OWNER/NAME, too")
    _check_push(args.push)
    try:
        recover(args.folder)
    except (DataError, OSError) as error:
        raise RecordError(str(error)) from error
    print(_push(args), flush=True)
    return ExitCode.OK


def _push(args: argparse.Namespace) -> str:
    from crane_x7_vla_rl.data.lerobot.push import push

    try:
        return push(args.folder, args.push)
    except DataError as error:
        raise OutputError(f"--push: {error}") from error


def _kept(folder: Path, resume: bool) -> int:
    """Return the episodes in the folder; complete what a killed run has left."""
    try:
        if resume:
            return recover(folder) or 0
    except (DataError, OSError) as error:
        raise RecordError(str(error)) from error
    if (folder / "meta" / "info.json").exists() or any(_staged(folder)):
        raise RecordError(f"{folder}: holds a data set already; --resume adds to it")
    return 0


def _check_cameras(folder: Path, cameras: Iterable[str]) -> None:
    """Refuse to add episodes of other cameras: each of them would be discarded."""
    if not (folder / layout.INFO).exists():
        return
    try:
        features = read_json(folder / layout.INFO)["features"]
    except (DataError, KeyError) as error:
        raise RecordError(f"{folder}: {error}") from error
    known = sorted(name.removeprefix(layout.IMAGES) for name in features
                   if name.startswith(layout.IMAGES))  # fmt: skip
    if known != sorted(cameras):
        raise RecordError(
            f"{folder}: its episodes have the cameras {', '.join(known)}, the new ones would have"
            f" {', '.join(sorted(cameras))}; use another folder, or the same cameras (--camera;"
            " of a loop: WRIST_CAMERA_TOPIC)"
        )


def _staged(folder: Path) -> Iterator[Path]:
    return (folder / ".staging").glob("episode-*")


def _robot_source(args: argparse.Namespace, settings: Settings) -> _Source:
    cameras = dict(args.camera or [(BASE, settings.camera_topic)])
    if BASE not in cameras:
        raise RecordError(
            f"--camera: names {', '.join(cameras)}, expected one of them to be {BASE}: the camera"
            " that policies see"
        )
    is_led, is_driven = args.action == "leader", args.action == "commands"
    options = _options(args, args.fps or DEFAULT_FPS, cameras, settings.joint_states_topic)
    topics = RobotTopics(
        cameras=cameras,
        joint_states=settings.joint_states_topic,
        leader=args.leader_topic if is_led else "",
        arm=settings.arm_topic if is_driven else "",
        trajectory=settings.trajectory_topic if is_driven else "",
        instruction=settings.instruction_topic,
    )
    host, port = settings.rosbridge_host, settings.rosbridge_port
    return _Source(options, _client(settings, host, port), topics)


def _feed_source(args: argparse.Namespace, settings: Settings) -> _Source:
    if args.camera is not None or args.action != "commands":
        raise RecordError("--from-feed: a loop has its own cameras and actions; leave --camera and"
                          " --action out")  # fmt: skip
    hello, feed = feed_input.open_feed(sys.stdin.buffer)
    options = _options(
        args, args.fps or hello.rate_hz, hello.cameras, hello.joint_states_topic,
        instruction=hello.instruction, policy=True,
    )  # fmt: skip
    client = _client(settings, hello.host, hello.port)
    return _Source(options, client, RobotTopics(), lambda events: feed_input.follow(feed, events))


def _options(
    args: argparse.Namespace,
    fps: float,
    cameras: dict[str, str],
    joint_states_topic: str,
    *,
    instruction: str | None = None,
    policy: bool = False,
) -> RecorderOptions:
    return RecorderOptions(
        folder=args.folder,
        fps=fps,
        cameras=cameras,
        action="policy" if policy else args.action,
        joint_states_topic=joint_states_topic,
        leader_topic=args.leader_topic,
        instruction=instruction or args.instruction,
        gap_s=args.gap,
        keeps_cut=args.on_gap == "keep",
        longest_s=args.longest,
        follows_policy=policy,
    )


def _client(settings: Settings, host: str, port: int) -> ClientConfig:
    return ClientConfig(
        host=host,
        port=port,
        proxy=settings.rosbridge_proxy,
        token=settings_values.token_text(settings.rosbridge_token, "ROSBRIDGE_TOKEN"),
        camera_topic=None,
        joint_states_topic=None,
        instruction_topic=None,
        advertise={RECORD_STATUS_TOPIC: STRING},
    )


def _rerun_observer(path: Path | None) -> Observer | None:
    if path is None:
        return None
    from crane_x7_remote.record.rerun_file import RerunFile

    return RerunFile(path).add


def _check_push(repo_id: str) -> None:
    from crane_x7_vla_rl.data.lerobot.push import check

    try:
        check(repo_id)
    except DataError as error:
        raise RecordError(f"--push: {error}") from error


def _camera(text: str) -> tuple[str, str]:
    name, _, topic = text.partition("=")
    if not (name.isascii() and name.replace("_", "a").isalnum() and topic.startswith("/")):
        raise argparse.ArgumentTypeError(
            f"{text!r}, expected NAME=TOPIC, such as wrist=/wrist/image_raw/compressed"
        )
    return name, topic


def _instruction(text: str) -> str:
    try:
        return messages.instruction({"data": text})
    except messages.MessageError as error:
        raise SettingsError(f"--instruction: {error}") from error
