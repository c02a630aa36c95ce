"""`crane-x7-remote status`: ask the running boot about tunnel, sshd, role and robot.

Exit code 0 if every part in use is up, else 27. It is the image's health check.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from crane_x7_remote import settings as settings_module
from crane_x7_remote.boot.files import run_dirs, status_socket
from crane_x7_remote.boot.status_board import PARTS
from crane_x7_remote.errors import ExitCode, UnhealthyError
from crane_x7_vla_rl import tables
from crane_x7_vla_rl.log_text import shown

ANSWER_TIMEOUT_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `status`."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document, the same as /healthz"
    )


def run(args: argparse.Namespace) -> int:
    """Print the state of every part. Raises UnhealthyError if no boot runs."""
    answer = ask(settings_module.load().boot_run_dir)
    if args.json:
        print(json.dumps(answer, indent=2))
    elif sys.stdout.isatty():
        _show(answer)
    else:
        print(as_text(answer))
    return ExitCode.OK if answer["healthy"] else ExitCode.UNHEALTHY


def ask(run_dir: str | None) -> dict[str, Any]:
    """Return the answer of the boot that runs in `run_dir`, or in one of the default folders."""
    tried = []
    for folder in run_dirs(run_dir):
        path = status_socket(folder)
        try:
            return _get(path)
        except OSError as error:
            tried.append(f"{path}: {error.strerror or error}")
    raise UnhealthyError(
        f"no boot answers ({'; '.join(tried)}); see the container's log, or set BOOT_RUN_DIR to its"
        " run folder"
    )


def as_text(answer: dict[str, Any]) -> str:
    """Return one line per part, and below it one that says what to do."""
    lines = []
    for name in PARTS:
        part = answer[name]
        since = f"{part['since'][:19].replace('T', ' ')} UTC ({_duration(part['for_s'])})"
        lines.append(f"{name:<7} {part['state']:<9} since {since}  {shown(part['detail'])}")
        if part["advice"]:
            lines.append(f"{'':<7} → {shown(part['advice'])}")
    return "\n".join(lines)


def _show(answer: dict[str, Any]) -> None:
    columns = ("part", "state", "since", "detail", "what to do")
    parts = {name: answer[name] for name in PARTS}
    rows = [
        (name, part["state"], _duration(part["for_s"]), shown(part["detail"]),
         shown(part["advice"] or ""))
        for name, part in parts.items()
    ]  # fmt: skip
    tables.show("healthy" if answer["healthy"] else "not healthy", columns, rows)


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=ANSWER_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _get(path: Path) -> dict[str, Any]:
    connection = _UnixConnection(path)
    try:
        connection.request("GET", "/healthz")
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return answer
