"""`crane-x7-remote watch`: a running loop and its robot in a terminal, until Ctrl-C.

Listens over rosbridge, or through the guard, and publishes nothing. On a terminal one screen is
redrawn twice a second; elsewhere a line is printed when something changes, and every 10 s.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
import time
import types
from typing import Final

from crane_x7_remote import settings, settings_values
from crane_x7_remote.errors import ExitCode, NoLoopError
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_remote.system import signals
from crane_x7_remote.watch import lines
from crane_x7_remote.watch.heard import View, Watcher

FLAGS: Final = (
    "rosbridge_host", "rosbridge_port", "rosbridge_proxy", "rosbridge_token", "camera_topic",
    "wrist_camera_topic", "joint_states_topic",
)  # fmt: skip
CONNECT_S: Final = 10.0
REDRAW_S: Final = 0.5
LINE_S: Final = 10.0
"""Without a terminal, a line is printed at least this often."""
ONCE_S: Final = 5.0
"""`--once` waits for a loop for this long; loops and guards speak once a second."""
OTHERS_S: Final = 1.2
"""And this much longer for other loops and the guard."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `watch`."""
    add = parser.add_argument
    add("--camera", choices=("age", "rate", "off"), default="age",
        help="age: one image a second, to see that the camera runs; rate: every image, which costs"
        " the link as much as a loop; off: none (%(default)s)")  # fmt: skip
    add("--plain", action="store_true", help="print lines even on a terminal")
    add("--once", action="store_true",
        help="print one line and end; exit code 13 if no loop is connected")  # fmt: skip
    settings.add_flags(parser, FLAGS)


def run(args: argparse.Namespace) -> int:
    """Show the loop until a signal; return 0. Raises PeerUnreachableError, NoLoopError."""
    chosen = settings.from_args(args)
    config = ClientConfig(
        host=chosen.rosbridge_host,
        port=chosen.rosbridge_port,
        proxy=chosen.rosbridge_proxy,
        token=settings_values.token_text(chosen.rosbridge_token, "ROSBRIDGE_TOKEN"),
        camera_topic=chosen.camera_topic,
        wrist_camera_topic=chosen.wrist_camera_topic or None,
        joint_states_topic=chosen.joint_states_topic,
    )
    ended = _end_on_signal()
    watcher = Watcher(config, args.camera)
    # The view itself says what the client would log.
    logging.getLogger("crane_x7_remote.rosbridge").setLevel(logging.CRITICAL)
    try:
        watcher.start(CONNECT_S)
        if args.once:
            _show_once(watcher, ended)
        elif args.plain or not sys.stdout.isatty():
            _print_lines(watcher, ended)
        else:
            _draw(watcher, ended)
    finally:
        watcher.close()
    return ExitCode.OK


def _end_on_signal() -> threading.Event:
    """Return an event that a signal sets; a second one ends the process at once."""
    ended = threading.Event()

    def on_signal(number: int, frame: types.FrameType | None) -> None:
        del frame
        signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL)
        # In a new thread: the interrupted thread may hold the event's lock.
        threading.Thread(target=ended.set, name="end").start()

    for number in signals.ending():
        signal.signal(number, on_signal)
    return ended


def _show_once(watcher: Watcher, ended: threading.Event) -> None:
    deadline_s = time.monotonic() + ONCE_S
    while not watcher.view().loops and time.monotonic() < deadline_s:
        if ended.wait(0.1):
            return
    ended.wait(OTHERS_S)
    view = watcher.view()
    print(lines.line(view), flush=True)
    if not view.loops:
        raise NoLoopError(
            f"no loop spoke within {ONCE_S:g} s at {view.address}; start one: crane-x7-remote infer"
        )


def _print_lines(watcher: Watcher, ended: threading.Event) -> None:
    told, told_s = "", float("-inf")
    while True:
        if ended.wait(REDRAW_S):
            return
        view, now_s = watcher.view(), time.monotonic()
        if (state := lines.state(view)) != told or now_s - told_s >= LINE_S:
            told, told_s = state, now_s
            print(f"{time.strftime('%H:%M:%S')} {lines.line(view)}", flush=True)


def _draw(watcher: Watcher, ended: threading.Event) -> None:
    from rich.console import Console
    from rich.live import Live

    from crane_x7_remote.watch.screen import screen

    console = Console(highlight=False, markup=False, emoji=False)
    view: View | None = None
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while not ended.is_set():
            view = watcher.view()
            live.update(screen(view), refresh=True)
            ended.wait(REDRAW_S)
    if view is not None:
        print(lines.line(view))
