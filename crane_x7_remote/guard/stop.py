"""`crane-x7-remote stop` and `resume`: command the guard, and wait until it confirms.

Opens a separate connection to the guard, which needs neither rosbridge nor a free place, and prints
the guard's state. A stop that is not confirmed within 2 s ends with an exit code other than 0: use
the emergency stop.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from crane_x7_remote import addresses, settings_values
from crane_x7_remote import settings as settings_module
from crane_x7_remote.errors import ExitCode, GuardError
from crane_x7_remote.guard.door import STOP_PATH
from crane_x7_remote.guard.rules import STATE_TOPIC, STOP_TOPIC
from crane_x7_remote.rosbridge import protocol
from crane_x7_remote.rosbridge.connection import LinkConfig, explain

CONFIRM_S = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `stop` and `resume`."""
    add = parser.add_argument
    add("--reason", default="", help="reason for the guard's log and state")
    add("--host", help="address of the guard [from GUARD_LISTEN]")
    add("--port", type=int, help="port of the guard [from GUARD_LISTEN]")
    add("--token", metavar="SECRET", help="as ROSBRIDGE_TOKEN; not needed to stop from the guard's"
        " machine")  # fmt: skip
    add("--json", action="store_true", help="print the guard's state as one JSON document")
    settings_module.add_flags(parser, ("guard_listen",))


def run(args: argparse.Namespace) -> int:
    """Stop or resume; return 0 after the guard has confirmed it. Raises GuardError."""
    flags = {"guard_listen": args.guard_listen, "rosbridge_token": args.token}
    settings = settings_module.load(flags)
    ((host, port), *_) = addresses.listen_addresses(settings.guard_listen)
    secret = settings.rosbridge_token or settings.guard_token
    link = LinkConfig(
        args.host or host,
        args.port or port,
        token=settings_values.token_text(secret, "ROSBRIDGE_TOKEN"),
        path=STOP_PATH,
        open_timeout_s=CONFIRM_S,
    )
    wanted = args.command == "stop"
    state = ask(link, wanted, args.reason)
    print(json.dumps(state) if args.json else in_words(state))
    return ExitCode.OK


def ask(link: LinkConfig, wanted: bool, reason: str = "") -> dict[str, Any]:
    """Command the guard and return its state when it has complied; raises GuardError."""
    word = "stop" if wanted else "resume"
    deadline_s = time.monotonic() + CONFIRM_S
    try:
        with connect(
            link.uri,
            additional_headers=link.headers,
            open_timeout=CONFIRM_S,
            close_timeout=0.2,
            compression=None,
            proxy=link.proxy,
        ) as connection:
            operation = protocol.publish(STOP_TOPIC, {"data": wanted})
            connection.send(protocol.encode_json(operation | {"reason": reason}))
            return _confirmed(connection, wanted, deadline_s)
    except TimeoutError as error:
        cause = f"no answer within {CONFIRM_S:g} s"
        raise GuardError(_failed(word, link, cause)) from error
    except InvalidStatus as error:
        raise GuardError(_failed(word, link, explain(error, link))) from error
    except (OSError, WebSocketException) as error:
        cause = explain(error, link).replace("rosbridge_server", "crane-x7-remote guard")
        raise GuardError(_failed(word, link, cause.replace("ROSBRIDGE_", "--"))) from error


def _confirmed(connection: ClientConnection, wanted: bool, deadline_s: float) -> dict[str, Any]:
    """Return the state that answers the operation; the guard sends it to the client."""
    while True:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        operation = protocol.decode(connection.recv(timeout=left_s))
        if operation["op"] == "status":
            raise GuardError(f"the guard refused: {operation.get('msg')}")
        if operation.get("topic") == STATE_TOPIC:
            state: dict[str, Any] = json.loads(operation["msg"]["data"])
            if (state.get("stopped") is not None) == wanted:
                return state


def _failed(word: str, link: LinkConfig, cause: str) -> str:
    hint = "; use the emergency stop" if word == "stop" else ""
    return f"the guard at {link.host}:{link.port} did not confirm {word}: {cause}{hint}"


def in_words(state: dict[str, Any]) -> str:
    """Return what the guard does now, for a person."""
    stopped, ends_s = state.get("stopped"), state.get("ends_s")
    if stopped is None:
        return "resumed: trajectories pass the guard again"
    rest = "the arm is at rest"
    if isinstance(ends_s, int | float) and ends_s > 0:
        rest = f"the arm will be at rest in {ends_s:.2f} s"
    if not state.get("gate", {}).get("rosbridge", True):
        rest = "the guard is not connected to rosbridge, so it cannot brake the arm"
    return f"stopped ({stopped}): {rest}"
