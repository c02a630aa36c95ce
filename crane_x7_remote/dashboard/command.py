"""`crane-x7-remote dashboard`: the machine's work as a page on 127.0.0.1, with a stop.

It follows a robot over rosbridge, or a training's folder (`--run`). `infer`, `demo` and `train`
start it with `--dashboard` as a child process: it can neither delay nor end them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from crane_x7_remote import addresses, settings_values
from crane_x7_remote import settings as settings_module
from crane_x7_remote.dashboard.board import Board
from crane_x7_remote.dashboard.loop_feed import FeedReader
from crane_x7_remote.errors import DashboardError, ExitCode, SettingsError
from crane_x7_remote.inference.feed import FeedError, read_messages
from crane_x7_remote.rosbridge.topics import RECORD_TOPIC, STRING
from crane_x7_remote.settings import Settings
from crane_x7_remote.system import signals
from crane_x7_vla_rl import camera_pose
from crane_x7_vla_rl.camera_pose import CameraPose, CameraPoseError

if TYPE_CHECKING:
    from crane_x7_remote.dashboard.server import Parts, Server

logger = logging.getLogger(__name__)

FLAGS: Final = (
    "rosbridge_host", "rosbridge_port", "rosbridge_token", "camera_topic", "wrist_camera_topic",
    "joint_states_topic", "instruction_topic", "trajectory_topic", "camera_pose",
    "dashboard_listen", "dashboard_token",
)  # fmt: skip
NICE: Final = 5
"""Beside a loop: the loop's processes come first."""
LAST_WORDS_S: Final = 2.0
"""How long the page of an ended loop stays, so that browsers learn of the end."""
SERVING: Final = "serving "
"""Begins the line with the address."""
INSTALL: Final = "pip install 'crane-x7-remote[dashboard]'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `dashboard`."""
    add = parser.add_argument
    add("--run", type=Path, metavar="DIR", help="show the training in this folder instead of a"
        " robot")  # fmt: skip
    add("--from-feed", action="store_true", help=argparse.SUPPRESS)
    add("--until-stdin-closes", action="store_true", help=argparse.SUPPRESS)
    settings_module.add_flags(parser, FLAGS)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal, or until the loop ends; raises RemoteError."""
    settings = settings_module.from_args(args)
    place = _place(settings)
    _check_installed()
    with _listener(*place) as listener:
        if args.run is not None:
            return _show_run(args.run.expanduser(), settings, listener, args.until_stdin_closes)
        return _show_robot(settings, listener, from_feed=args.from_feed)


def _place(settings: Settings) -> tuple[str, int]:
    ((host, port), *others) = addresses.listen_addresses(settings.dashboard_listen)
    if others:
        raise SettingsError(f"DASHBOARD_LISTEN={settings.dashboard_listen}: expected one address")
    if not addresses.is_loopback(host) and settings.dashboard_token is None:
        raise SettingsError(
            f"DASHBOARD_LISTEN: {host} can be reached from other machines, and whoever sees the"
            " page can drive the arm; set DASHBOARD_TOKEN, for example to the output of `openssl"
            " rand -hex 16`, or listen on 127.0.0.1 and use ssh -L"
        )
    return ("127.0.0.1" if host == "localhost" else host), port


def _check_installed() -> None:
    try:
        from crane_x7_remote.dashboard import server
    except ModuleNotFoundError as error:
        raise DashboardError(
            f"the dashboard needs {error.name}, which is not installed: {INSTALL}"
        ) from error
    del server


@contextlib.contextmanager
def _listener(host: str, port: int) -> Any:
    from crane_x7_remote.dashboard import server

    try:
        listener = server.listener(host, port)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DashboardError(
            f"cannot listen on {host}:{port} (DASHBOARD_LISTEN): {reason}; choose another port, or"
            " 0 for a free one"
        ) from error
    with listener:
        yield listener


def _parts(settings: Settings, board: Board, **more: Any) -> Parts:
    from crane_x7_remote.dashboard.security import Access
    from crane_x7_remote.dashboard.server import Parts

    token = settings_values.token_text(settings.dashboard_token, "DASHBOARD_TOKEN")
    return Parts(board=board, access=Access(token), **more)


def _machine(settings: Settings, board: Board) -> Any:
    from crane_x7_remote.dashboard.machine import Machine

    runs_boot = settings.ts_socket is not None and settings.ts_enable_health_check
    health = f"http://{settings.ts_local_addr_port}/healthz" if runs_boot else None
    return Machine(board, health)


def _show_run(
    folder: Path, settings: Settings, listener: socket.socket, until_stdin_closes: bool
) -> int:
    from crane_x7_remote.dashboard import server
    from crane_x7_remote.dashboard.run_folder import RunFollower

    if not (until_stdin_closes or folder.is_dir()):  # a trainer makes its folder later
        raise DashboardError(f"--run {folder}: there is no such folder; expected one of a training")
    board = Board()
    with RunFollower(folder, board) as follower, _machine(settings, board):
        made = server.make(_parts(settings, board, control=None, run=follower))
        if until_stdin_closes:
            asyncio.run(_serve(made, listener, sys.stdin.buffer))
        else:
            asyncio.run(_serve(made, listener))
    return ExitCode.OK


def _show_robot(settings: Settings, listener: socket.socket, from_feed: bool) -> int:
    from crane_x7_remote.dashboard import server
    from crane_x7_remote.dashboard.control import Control, Loop
    from crane_x7_remote.dashboard.robot import Robot, RobotTopics

    hello = _hello(sys.stdin.buffer) if from_feed else None
    loop = None if hello is None else Loop(hello["pid"])
    board, link = Board(), _client_config(settings)
    topics = RobotTopics(
        settings.camera_topic, settings.joint_states_topic, settings.instruction_topic,
        settings.trajectory_topic, settings.wrist_camera_topic,
    )  # fmt: skip
    with Robot(board, link, topics, _pose(settings), with_arm=hello is None) as robot:
        control = Control(robot, _guard_link(settings), loop)
        made = server.make(_parts(settings, board, control=control, run=None))
        with _machine(settings, board):
            if hello is None:
                asyncio.run(_serve(made, listener))
            else:
                os.nice(NICE)
                asyncio.run(_serve_feed(made, listener, board, robot, hello))
    return ExitCode.OK


def _hello(stream: IO[bytes]) -> dict[str, Any]:
    """Return the feed's first message; raises DashboardError."""
    try:
        message = next(read_messages(stream), None)
    except FeedError as error:
        raise DashboardError(str(error)) from error
    if message is None or message["kind"] != "hello":
        raise DashboardError(
            "--from-feed: standard input is not a loop's feed; start it with infer --dashboard"
        )
    return message


async def _serve_feed(
    server: Server, listener: socket.socket, board: Board, robot: Any, hello: Mapping[str, Any]
) -> None:
    events = asyncio.get_running_loop()

    def ended() -> None:
        with contextlib.suppress(RuntimeError):  # the server has ended first
            events.call_soon_threadsafe(events.call_later, LAST_WORDS_S, server.end)

    FeedReader(board, robot.pose, ended).start(sys.stdin.buffer, hello)
    await _serve(server, listener)


async def _serve(server: Server, listener: socket.socket, until: IO[bytes] | None = None) -> None:
    """Serve until a signal, or until the stream `until` ends."""
    events = asyncio.get_running_loop()
    for number in signals.ending():
        events.add_signal_handler(number, server.end)
    if until is not None:
        stream = until

        def wait() -> None:
            while stream.read(4096):
                pass
            with contextlib.suppress(RuntimeError):
                events.call_soon_threadsafe(events.call_later, LAST_WORDS_S, server.end)

        threading.Thread(target=wait, name="stdin", daemon=True).start()
    print(f"{SERVING}{_url(listener)}", flush=True)
    await server.serve(sockets=[listener])


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _client_config(settings: Settings) -> Any:
    from crane_x7_remote.rosbridge.config import ClientConfig

    return ClientConfig(
        host=settings.rosbridge_host,
        port=settings.rosbridge_port,
        proxy=settings.rosbridge_proxy,
        token=settings_values.token_text(settings.rosbridge_token, "ROSBRIDGE_TOKEN"),
        camera_topic=None,
        joint_states_topic=None,
        instruction_topic=None,
        advertise={settings.instruction_topic: STRING, RECORD_TOPIC: STRING},
    )


def _guard_link(settings: Settings) -> Any:
    from crane_x7_remote.guard.door import STOP_PATH
    from crane_x7_remote.guard.stop import CONFIRM_S
    from crane_x7_remote.rosbridge.connection import LinkConfig

    return LinkConfig(
        settings.rosbridge_host,
        settings.rosbridge_port,
        settings.rosbridge_proxy,
        token=settings_values.token_text(settings.rosbridge_token, "ROSBRIDGE_TOKEN"),
        path=STOP_PATH,
        open_timeout_s=CONFIRM_S,
    )


def _pose(settings: Settings) -> CameraPose | None:
    if settings.camera_pose is None:
        return None
    try:
        return camera_pose.read(settings.camera_pose)
    except CameraPoseError as error:
        raise SettingsError(f"CAMERA_POSE: {error}") from error
