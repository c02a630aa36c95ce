"""`crane-x7-remote say`: give a running loop a new task.

Publishes one std_msgs/String on the instruction topic, through roslibpy: an independent client, so
that it and the client of the control path are tested against each other.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import socket
import threading
from typing import TYPE_CHECKING

from crane_x7_remote import settings
from crane_x7_remote.errors import ExitCode, PeerUnreachableError
from crane_x7_remote.rosbridge import messages

if TYPE_CHECKING:
    import roslibpy

FLAGS = ("rosbridge_host", "rosbridge_port", "rosbridge_token", "instruction_topic")
CONNECT_TIMEOUT_S = 5.0
TRIES = 3
CONFIRM_TIMEOUT_S = 1.0
"""Saying the same task again changes nothing, so a lost message is simply repeated."""
GOODBYE_TIMEOUT_S = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `say`."""
    parser.add_argument("text", help='the task, such as "pick up the blue cube"')
    settings.add_flags(parser, FLAGS)


def run(args: argparse.Namespace) -> int:
    """Send `args.text`; return 0 when the robot has it. Raises PeerUnreachableError."""
    chosen = settings.from_args(args)
    text = messages.instruction({"data": args.text})
    token = settings.token_text(chosen.rosbridge_token, "ROSBRIDGE_TOKEN")
    say(text, chosen.rosbridge_host, chosen.rosbridge_port, chosen.instruction_topic, token)
    print(f"said on {chosen.instruction_topic}: {text}")
    return ExitCode.OK


def say(text: str, host: str, port: int, topic: str, token: str | None = None) -> None:
    """Publish `text` on `topic` and wait until the server has sent it round, to us as well. `token`
    is for a guard that asks for one.

    Raises PeerUnreachableError, and MessageError for a text that the loop would refuse.
    """
    messages.instruction({"data": text})
    _check_reachable(host, port)
    for name in ("roslibpy", "twisted", "autobahn"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import roslibpy

    headers = None if token is None else {"Authorization": f"Bearer {token}"}
    ros = roslibpy.Ros(host, port, headers=headers)
    came_back = threading.Event()
    try:
        ros.run(CONNECT_TIMEOUT_S)
        instruction = roslibpy.Topic(ros, topic, "std_msgs/String", reconnect_on_close=False)
        instruction.subscribe(lambda message: came_back.set() if message["data"] == text else None)
        for _ in range(TRIES):
            instruction.publish(roslibpy.Message({"data": text}))
            if came_back.wait(CONFIRM_TIMEOUT_S):
                return
    except roslibpy.core.RosTimeoutError as error:
        raise PeerUnreachableError(
            f"{host}:{port} answers, but not as a rosbridge server within {CONNECT_TIMEOUT_S:g} s;"
            " check that the port is rosbridge's"
        ) from error
    finally:
        _hang_up(ros)
    raise PeerUnreachableError(
        f"rosbridge at {host}:{port} took the instruction but did not send it round on {topic}"
        f" within {TRIES * CONFIRM_TIMEOUT_S:g} s; check that the topic carries std_msgs/String"
    )


def _hang_up(ros: roslibpy.Ros) -> None:
    """Say goodbye and end roslibpy's thread, each within GOODBYE_TIMEOUT_S.

    No goodbye reaches a server that never shook hands, and roslibpy waits for its thread without
    limit. Neither may change the outcome; the thread is a daemon, so leaving it does no harm.
    """
    import roslibpy

    with contextlib.suppress(roslibpy.core.RosTimeoutError):
        ros.close(GOODBYE_TIMEOUT_S)
    ending = threading.Thread(target=ros.factory.manager.terminate, daemon=True)
    ending.start()
    ending.join(GOODBYE_TIMEOUT_S)


def _check_reachable(host: str, port: int) -> None:
    """Name the cause at once where roslibpy would retry in silence."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
    except socket.gaierror as error:
        cause, check = f"the name is unknown ({error.strerror})", "ROSBRIDGE_HOST and the tunnel"
    except ConnectionRefusedError:
        cause, check = "nothing listens there", "ROSBRIDGE_PORT and whether rosbridge runs"
    except TimeoutError:
        cause, check = f"no answer within {CONNECT_TIMEOUT_S:g} s", "the tunnel and the firewall"
    except OSError as error:
        cause, check = str(error), "the network"
    else:
        return
    raise PeerUnreachableError(f"cannot reach rosbridge at {host}:{port}: {cause}; check {check}")
