"""`crane-x7-remote say`: give a running loop a new task, and wait for its answer.

Publishes one std_msgs/String on the instruction topic and reads each loop's answer on /vla/status.
It uses roslibpy, an independent client, so that this client and the one of the control path are
tested against each other.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from crane_x7_remote import settings, settings_values
from crane_x7_remote.errors import (
    ExitCode,
    NoLoopError,
    PeerUnreachableError,
    RemoteError,
    TaskRefusedError,
)
from crane_x7_remote.rosbridge import loop_status, messages
from crane_x7_remote.rosbridge.loop_status import LoopStatus
from crane_x7_remote.rosbridge.topics import STATUS_TOPIC, STRING
from crane_x7_vla_rl.log_text import shown

if TYPE_CHECKING:
    import roslibpy

FLAGS = ("rosbridge_host", "rosbridge_port", "rosbridge_token", "instruction_topic")
CONNECT_TIMEOUT_S = 5.0
TRIES = 3
CONFIRM_TIMEOUT_S = 1.0
"""Sending the same task again changes nothing, so a lost message is repeated."""
ANSWER_TIMEOUT_S = 3.0
OTHERS_S = 0.3
"""Wait after the first loop's answer, for the answers of other loops."""
GOODBYE_TIMEOUT_S = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `say`."""
    parser.add_argument("text", type=_task, help='the task, such as "pick up the blue cube"')
    parser.add_argument("--json", action="store_true", help="print the answers as JSON")
    settings.add_flags(parser, FLAGS)


def _task(text: str) -> str:
    """Return the task in one line; a wrong one is a wrong argument."""
    try:
        return messages.instruction({"data": text})
    except messages.MessageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run(args: argparse.Namespace) -> int:
    """Send `args.text`; return 0 when every loop has accepted it. Raises RemoteError."""
    chosen = settings.from_args(args)
    token = settings_values.token_text(chosen.rosbridge_token, "ROSBRIDGE_TOKEN")
    host, port, topic = chosen.rosbridge_host, chosen.rosbridge_port, chosen.instruction_topic
    text: str = args.text
    answers = say(text, host, port, topic, token)
    problem = _problem(text, answers)
    if args.json:
        print(_as_json(topic, text, answers))
        return ExitCode.OK if problem is None else problem.exit_code
    for session in _accepting(text, answers):
        print(f"accepted by loop {session}: {shown(text)}")
    if problem is not None:
        raise problem
    return ExitCode.OK


def say(
    text: str, host: str, port: int, topic: str, token: str | None = None
) -> dict[str, LoopStatus]:
    """Publish `text` on `topic` and return the last status of each loop, by session.

    `text` is one line as `messages.instruction` returns it. Waits until the server has echoed
    it, then up to ANSWER_TIMEOUT_S for loops. `token` is for a guard that requires one. Raises
    PeerUnreachableError.
    """
    _check_reachable(host, port)
    for name in ("roslibpy", "twisted", "autobahn"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import roslibpy

    headers = None if token is None else {"Authorization": f"Bearer {token}"}
    ros = roslibpy.Ros(host, port, headers=headers)
    came_back = threading.Event()
    answers = _Answers(text)
    try:
        ros.run(CONNECT_TIMEOUT_S)
        status = roslibpy.Topic(ros, STATUS_TOPIC, STRING, reconnect_on_close=False)
        status.subscribe(answers.hear)
        instruction = roslibpy.Topic(ros, topic, "std_msgs/String", reconnect_on_close=False)
        instruction.subscribe(lambda message: came_back.set() if message["data"] == text else None)
        for _ in range(TRIES):
            instruction.publish(roslibpy.Message({"data": text}))
            if came_back.wait(CONFIRM_TIMEOUT_S):
                return answers.wait(ANSWER_TIMEOUT_S)
    except roslibpy.core.RosTimeoutError as error:
        raise PeerUnreachableError(
            f"{host}:{port} answers, but not as a rosbridge server, within {CONNECT_TIMEOUT_S:g} s;"
            " check that this port is rosbridge's"
        ) from error
    finally:
        _hang_up(ros)
    raise PeerUnreachableError(
        f"rosbridge at {host}:{port} accepted the instruction but did not publish it on {topic}"
        f" within {TRIES * CONFIRM_TIMEOUT_S:g} s; check that the topic carries std_msgs/String"
    )


class _Answers:
    """The last status of every loop; `hear` is called on roslibpy's thread."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._changed = threading.Condition()
        self._statuses: dict[str, LoopStatus] = {}

    def hear(self, message: Mapping[str, Any]) -> None:
        """Record a status; skip any other message."""
        with contextlib.suppress(messages.MessageError):
            status = loop_status.read(message)
            with self._changed:
                self._statuses[status.session] = status
                self._changed.notify_all()

    def wait(self, timeout_s: float) -> dict[str, LoopStatus]:
        """Return the statuses when every known loop has answered, or after the timeout."""
        with self._changed:
            deadline_s = time.monotonic() + timeout_s
            self._changed.wait_for(lambda: any(self._answered()), timeout_s)
            self._changed.wait_for(lambda: False, min(OTHERS_S, deadline_s - time.monotonic()))
            left_s = deadline_s - time.monotonic()
            self._changed.wait_for(lambda: all(self._answered()), max(0.0, left_s))
            return dict(self._statuses)

    def _answered(self) -> list[bool]:
        return [status.task == self._text for status in self._statuses.values()]


def _accepting(text: str, answers: Mapping[str, LoopStatus]) -> list[str]:
    return [
        session
        for session, status in sorted(answers.items())
        if status.task == text and status.task_state == "accepted"
    ]


def _problem(text: str, answers: Mapping[str, LoopStatus]) -> RemoteError | None:
    """Return why not every loop has accepted the task; None if all have."""
    if not answers:
        return NoLoopError(
            f"no loop answered within {ANSWER_TIMEOUT_S:g} s. The robot's rosbridge has the"
            f" task, but no loop is connected to it, the loop is still loading its model, or the"
            f" version of the loop or the guard does not know {STATUS_TOPIC}. Start one:"
            f" crane-x7-remote"
            " infer"
        )
    lines = []
    for session, status in sorted(answers.items()):
        if status.task != text:
            lines.append(f"loop {session} did not answer; its task is: {shown(status.task)}")
        elif status.task_state == "refused":
            lines.append(f"refused by loop {session}: {shown(status.reason, 600)}")
    if not lines:
        return None
    answered = any(status.task == text for status in answers.values())
    return (TaskRefusedError if answered else NoLoopError)("\n".join(lines))


def _as_json(topic: str, text: str, answers: Mapping[str, LoopStatus]) -> str:
    listed = [
        {
            "session": session,
            "task_state": status.task_state if status.task == text else None,
            "reason": status.reason,
            "hold": status.hold,
            "dry_run": status.dry_run,
        }
        for session, status in sorted(answers.items())
    ]
    return json.dumps({"topic": topic, "instruction": text, "answers": listed}, ensure_ascii=False)


def _hang_up(ros: roslibpy.Ros) -> None:
    """Close the connection and end roslibpy's thread, each within GOODBYE_TIMEOUT_S.

    A server that never completed the handshake receives no close, and roslibpy waits for its thread
    without a deadline. Neither may change the result; the thread is a daemon, so it may be
    abandoned.
    """
    import roslibpy

    with contextlib.suppress(roslibpy.core.RosTimeoutError):
        ros.close(GOODBYE_TIMEOUT_S)
    ending = threading.Thread(target=ros.factory.manager.terminate, daemon=True)
    ending.start()
    ending.join(GOODBYE_TIMEOUT_S)


def _check_reachable(host: str, port: int) -> None:
    """Name the cause at once; roslibpy alone would retry silently."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
    except socket.gaierror as error:
        cause, check = f"the name is unknown ({error.strerror})", "ROSBRIDGE_HOST and the tunnel"
    except ConnectionRefusedError:
        cause, check = "no process listens there", "ROSBRIDGE_PORT and whether rosbridge runs"
    except TimeoutError:
        cause, check = f"no answer within {CONNECT_TIMEOUT_S:g} s", "the tunnel and the firewall"
    except OSError as error:
        cause, check = str(error), "the network"
    else:
        return
    raise PeerUnreachableError(f"cannot reach rosbridge at {host}:{port}: {cause}; check {check}")
