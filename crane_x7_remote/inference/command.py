"""`crane-x7-remote infer`: settings and flags → client, policy and loop, until a signal.

SIGTERM, SIGINT and SIGHUP end it with exit code 0 and the arm at rest; every other cause has its
own code, see errors.ExitCode.
"""

from __future__ import annotations

import argparse
import logging
import secrets
import signal
import sys
import threading
import time
import types
from dataclasses import asdict
from pathlib import Path
from typing import Final

from crane_x7_remote import addresses, settings_values
from crane_x7_remote import settings as settings_module
from crane_x7_remote.addresses import is_loopback
from crane_x7_remote.errors import (
    ExitCode,
    OutputError,
    PeerUnreachableError,
    PolicyError,
)
from crane_x7_remote.inference import checkpoint, feed
from crane_x7_remote.inference.config import LoopConfig
from crane_x7_remote.inference.feeds import FeedCommand, Feeds, own_command
from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.live_line import live_line
from crane_x7_remote.inference.loop import InferenceLoop
from crane_x7_remote.inference.metrics import LoopMetrics, MetricsWriter
from crane_x7_remote.inference.outgoing import OutgoingTopics
from crane_x7_remote.policy_server import choice
from crane_x7_remote.rosbridge.client import RosbridgeClient
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_remote.rosbridge.topics import STATUS_TOPIC, STRING
from crane_x7_remote.settings import Settings
from crane_x7_remote.system import signals
from crane_x7_remote.system.logs import unblocked
from crane_x7_remote.system.real_time import ask_for_real_time
from crane_x7_remote.tunnel.peer import StatusCommand, TailnetDiagnosis
from crane_x7_vla_rl.camera_pose import CameraPose
from crane_x7_vla_rl.policies.base import NotFiniteError

logger = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0005
"""How long a thread may keep the interpreter while another waits; Python's default of 5 ms would
be the largest part of the latency."""
RECORD_END_S: Final = 120.0
"""How long a recorder may take to encode its last episodes after the loop has ended."""
DASHBOARD_END_S: Final = 10.0
"""How long the page may stay after the loop: browsers learn of the end."""
COMMON: Final = (
    "rosbridge_host", "rosbridge_port", "rosbridge_token", "vla_policy", "vla_model_path",
    "policy_server", "policy_io", "vla_task_instruction", "vla_device", "vla_inference_rate",
    "speed", "camera_pose", "dry_run", "duration", "metrics",
    "record", "dashboard",
)  # fmt: skip
"""See command_line."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every setting of the loop, and the flags of this command."""
    settings_module.add_flags(parser, settings_module.role_fields())
    parser.add_argument(
        "--duration", type=_seconds, metavar="S", help="stop after S seconds [until a signal]"
    )
    parser.add_argument(
        "--metrics",
        type=Path,
        metavar="PATH",
        help="write metrics to this file as JSON, once a second",
    )
    parser.add_argument(
        "--record", type=Path, metavar="DIR",
        help="record what the policy sees and does into a LeRobot data set, or add to it",
    )  # fmt: skip
    parser.add_argument(
        "--session",
        type=_session,
        metavar="HEX",
        help="8 hex digits that identify this loop on the robot [random]",
    )
    add_dashboard_flag(parser)


def add_dashboard_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--dashboard`, see feed_commands."""
    parser.add_argument(
        "--dashboard",
        type=_port,
        nargs="?",
        const=0,
        metavar="PORT",
        help="show this loop on a page at 127.0.0.1:PORT [DASHBOARD_LISTEN, port 8686]",
    )


def run(args: argparse.Namespace) -> int:
    """Drive until a signal or `--duration`; raises RemoteError for every expected failure."""
    settings = settings_module.from_args(args)
    for line in settings_module.older_variables():
        logger.warning("%s", line)
    name = choice.policy_name(settings)
    names = choice.option_names(args)
    choice.check(name, settings, names)
    if name in ("openvla", "lerobot") and settings.vla_model_path is not None:
        settings = checkpoint.apply(settings)
    pose = choice.camera(args, settings)
    config = loop_config(settings, args.session or secrets.token_hex(4), pose)
    writer = None if args.metrics is None else _metrics_writer(args.metrics)
    stop = threading.Event()
    ends: list[InferenceLoop] = []

    def on_signal(number: int, frame: types.FrameType | None) -> None:
        del frame
        # A second Ctrl-C ends it at once; a lost session often sends its SIGHUP twice.
        signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL)
        # In a new thread: the interrupted thread may hold the lock that `loop.stop` needs.
        threading.Thread(target=end, args=(number,), name="stop").start()

    def end(number: int) -> None:
        stop.set()
        for loop in ends:
            loop.stop()
        logger.info("stopping on %s", signal.Signals(number).name)

    for ending in signals.ending():
        signal.signal(ending, on_signal)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    deadline_s = time.monotonic() + settings.peer_wait_timeout
    limits = Limits(max_jump_rad=settings.max_jump, speed=settings.speed)
    link = client_config(settings)
    metrics = LoopMetrics(config.session, config.rate_hz)
    with (
        unblocked(),
        RosbridgeClient(link) as client,
        Feeds(
            feed_commands(args, settings),
            feed.hello(link, config, name),
            lambda: metrics.snapshot(asdict(client.link)),
        ) as feeds,
    ):
        policy = choice.load(name, settings, names)
        observe = feeds.offer if feeds.is_wanted else None
        loop = InferenceLoop(
            client, policy, config, limits, time.monotonic, observe=observe, metrics=metrics
        )
        ends.append(loop)
        try:
            warm_up(loop, name)
            if wait_connected(client, deadline_s, stop, tailnet_diagnosis(settings)):
                _drive(loop, client, args.duration, writer)
        finally:
            if writer is not None:
                writer.offer(loop.metrics.snapshot(asdict(client.link)))
                writer.close()
    return ExitCode.OK


def feed_commands(args: argparse.Namespace, settings: Settings) -> list[FeedCommand]:
    """Return the processes that follow this loop, see feeds.Feeds; one line for each flag."""
    environment = settings_module.as_environment(settings)
    commands = []
    if args.record is not None:
        words = own_command("record", str(args.record), "--from-feed")
        commands.append(FeedCommand("record", words, RECORD_END_S, environment))
    if args.dashboard is not None:
        place = {"DASHBOARD_LISTEN": f"127.0.0.1:{args.dashboard}"} if args.dashboard else {}
        words = own_command("dashboard", "--from-feed", "--log-level", "warning")
        commands.append(FeedCommand("dashboard", words, DASHBOARD_END_S, environment | place))
    return commands


def _drive(
    loop: InferenceLoop,
    client: RosbridgeClient,
    duration_s: float | None,
    writer: MetricsWriter | None,
) -> None:
    def report(metrics: LoopMetrics) -> None:
        if writer is not None:
            writer.offer(metrics.snapshot(asdict(client.link)))

    logger.info("loop %s starts at %g Hz", loop.metrics.session, loop.metrics.asked_rate_hz)
    ask_for_real_time()
    with live_line(loop.metrics):
        loop.run(duration_s, report)
    metrics = loop.metrics
    logger.info(
        "%d trajectories in %d ticks; holds: %s",
        metrics.counters["trajectories"],
        metrics.counters["ticks"],
        ", ".join(f"{reason} {count}" for reason, count in metrics.holds.items()) or "none",
    )


def wait_connected(
    client: RosbridgeClient,
    deadline_s: float,
    stop: threading.Event,
    diagnosis: TailnetDiagnosis | None,
) -> bool:
    """Return whether rosbridge answered; False when a signal came first."""
    while not client.link.connected:
        left_s = deadline_s - time.monotonic()
        try:
            client.wait_connected(0)
        except PeerUnreachableError as error:
            if left_s <= 0:
                raise (error if diagnosis is None else diagnosis.explain(error)) from error
            if diagnosis is not None:
                diagnosis.look(error)
        if stop.wait(min(0.05, max(left_s, 0))):
            return False
    return not stop.is_set()


def tailnet_diagnosis(settings: Settings) -> TailnetDiagnosis | None:
    """Boot sets TS_SOCKET after joining a tailnet, and a proxy if that leads to the robot."""
    if settings.ts_socket is None or is_loopback(settings.rosbridge_host):
        return None
    command = StatusCommand(Path(settings.ts_socket))
    return TailnetDiagnosis(settings.rosbridge_host, command, settings.rosbridge_proxy is not None)


def warm_up(loop: InferenceLoop, name: str) -> None:
    """Run the policy `name` on synthetic images; raises PolicyError."""
    try:
        loop.warm_up()
    except NotFiniteError as error:
        raise PolicyError(f"policy {name}: {error}") from error
    except Exception as error:
        raise PolicyError(
            f"policy {name} failed on a synthetic image: {type(error).__name__}: {error}"
        ) from error


def _metrics_writer(path: Path) -> MetricsWriter:
    """Refuse a missing folder at the start; a disk that fills up later is only a warning."""
    if not path.parent.is_dir():
        raise OutputError(f"--metrics {path}: folder {path.parent} does not exist; create it first")
    return MetricsWriter(path)


def client_config(settings: Settings) -> ClientConfig:
    """Return the address and the topics of the robot."""
    return ClientConfig(
        host=settings.rosbridge_host,
        port=settings.rosbridge_port,
        proxy=settings.rosbridge_proxy,
        token=settings_values.token_text(settings.rosbridge_token, "ROSBRIDGE_TOKEN"),
        camera_topic=settings.camera_topic,
        wrist_camera_topic=settings.wrist_camera_topic or None,
        joint_states_topic=settings.joint_states_topic,
        instruction_topic=settings.instruction_topic,
        advertise={STATUS_TOPIC: STRING}
        | ({} if settings.dry_run else _topics(settings).published),
    )


def _say_hint(settings: Settings) -> str:
    """Return the command that gives this loop another task, ready to type."""
    flags = "".join(
        f" --{name.replace('_', '-')} {value}"
        for name in ("rosbridge_host", "rosbridge_port", "instruction_topic")
        if (value := getattr(settings, name)) != Settings.model_fields[name].default
    )
    return f'Give a task: crane-x7-remote say{flags} "pick up the red cube"'


def loop_config(settings: Settings, session: str, camera: CameraPose | None) -> LoopConfig:
    """Return the options of a loop named `session`."""
    return LoopConfig(
        session=session,
        rate_hz=settings.vla_inference_rate,
        instruction=settings.vla_task_instruction,
        max_frame_age_s=settings.max_frame_age,
        policy_timeout_s=settings.policy_timeout,
        validity_s=settings.trajectory_validity,
        dry_run=settings.dry_run,
        camera_pose=camera,
        wrist_camera_topic=settings.wrist_camera_topic,
        say_hint=_say_hint(settings),
        topics=_topics(settings),
    )


def _topics(settings: Settings) -> OutgoingTopics:
    return OutgoingTopics(
        arm=settings.arm_topic,
        trajectory=settings.trajectory_topic,
        action=settings.action_topic,
        gripper_action=settings.gripper_action,
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}, expected a positive number of seconds")
    return value


def _port(text: str) -> int:
    try:
        return addresses.read_port(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _session(text: str) -> str:
    if len(text) != 8 or any(digit not in "0123456789abcdef" for digit in text):
        raise argparse.ArgumentTypeError(f"{text!r}, expected 8 hex digits such as 0a1b2c3d")
    return text
