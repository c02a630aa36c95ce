"""The command that asks the node's tailscaled.

tailscale [--socket PATH] status [--json] [--peers=false] | logout | nc HOST PORT
tailscale [--socket PATH] ping [--c=N] [--timeout=3s] [--until-direct=false] HOST
tailscale [--socket PATH] up --login-server=URL [--auth-key=KEY|file:PATH] [--hostname=NAME]
    [--timeout=30s] [--reset] [--accept-dns=false]
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from fake_tailnet import wire
from fake_tailnet.wire import CHUNK_BYTES, Message

NO_DAEMON = "failed to connect to local tailscaled; it doesn't appear to be running"


def read_request(command: str, words: Sequence[str]) -> Message:
    """Return the request to tailscaled; exits where the words are unknown."""
    flags = wire.Flags(f"tailscale {command}")
    if command == "status":
        flags.add_argument("--json", action="store_true")
        flags.add_argument("--peers", choices=["true", "false"], default="true")
        found = flags.read(words)
        return {"do": command, "json": found.json, "peers": found.peers == "true"}
    if command == "nc":
        flags.add_argument("host")
        flags.add_argument("port", type=int)
        return {"do": command, **vars(flags.read(words))}
    if command == "ping":
        for name, default in (("--c", "10"), ("--timeout", "5s"), ("--until-direct", "true")):
            flags.add_argument(name, default=default)
        flags.add_argument("host")
        return {"do": command, "host": flags.read(words).host}
    if command == "logout":
        flags.read(words)
        return {"do": command}
    if command != "up":
        sys.exit(f"tailscale: unknown subcommand: {command}")
    for name in ("--login-server", "--auth-key", "--accept-dns"):
        flags.add_argument(name)
    flags.add_argument("--hostname", default=socket.gethostname())
    flags.add_argument("--timeout", default="0s")
    flags.add_argument("--reset", action="store_true")
    found = flags.read(words)
    key = found.auth_key
    if key is not None and key.startswith("file:"):
        key = Path(key.removeprefix("file:")).read_text().strip()
    return {
        "do": command,
        "url": found.login_server,
        "auth_key": key,
        "hostname": found.hostname,
        "timeout_s": float(found.timeout.removesuffix("s")) or None,
    }


def main(words: Sequence[str]) -> int:
    """Ask, and print the answer."""
    flags = wire.Flags("tailscale")
    flags.add_argument("--socket", default="/var/run/tailscale/tailscaled.sock")
    flags.add_argument("command")
    flags.add_argument("words", nargs="...")
    found = flags.read(words)
    request = read_request(found.command, found.words)
    with socket.socket(socket.AF_UNIX) as daemon:
        try:
            daemon.connect(found.socket)
        except OSError:
            print(NO_DAEMON, file=sys.stderr)
            return 1
        daemon.sendall(json.dumps(request).encode() + b"\n")
        incoming = daemon.makefile("rb")
        answer = json.loads(incoming.readline() or json.dumps({"code": 1, "text": NO_DAEMON}))
        if answer["text"]:
            is_answer = request["do"] in ("status", "ping")
            print(answer["text"], file=sys.stdout if is_answer else sys.stderr)
        if request["do"] == "nc" and answer["code"] == 0:
            threading.Thread(target=_send_input, args=(daemon,), daemon=True).start()
            while chunk := incoming.read1(CHUNK_BYTES):
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
            sys.stdout.flush()
            os._exit(0)  # not waiting for the end of an input that nobody reads any more
    return int(answer["code"])


def _send_input(daemon: socket.socket) -> None:
    while chunk := os.read(sys.stdin.fileno(), CHUNK_BYTES):
        daemon.sendall(chunk)
    daemon.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
