"""The control server: who may join, who is there; and the commands that ask it.

    headscale -c CONFIG serve
    headscale -c CONFIG [--force] health | users create NAME | nodes list
    headscale -c CONFIG preauthkeys create -u 1 -e 1h [--reusable] [--ephemeral]
    headscale -c CONFIG preauthkeys expire --id ID

CONFIG is headscale's own, as JSON; listen_addr, unix_socket, database and dns.base_domain are read.
A node's connection begins with {node_key, auth_key, hostname, ephemeral, at}, `at` being where
other nodes reach it; every change is answered with a new list of nodes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import socket
import string
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from fake_tailnet import wire
from fake_tailnet.wire import Message, RefusedError

UNITS_S = {"s": 1, "m": 60, "h": 3600}


class Control:
    """The tailnet, kept in a file across restarts."""

    def __init__(self, config: Message) -> None:
        self._config = config
        self._file = Path(config["database"]["sqlite"]["path"])
        self._users: list[str] = []
        self._keys: list[Message] = []
        self._nodes: list[Message] = []
        self._last_id = 0
        if self._file.exists():
            self._users, self._keys, self._nodes, self._last_id = json.loads(self._file.read_text())
        self._links: dict[str, asyncio.StreamWriter] = {}  # by node key: who is online

    async def serve(self) -> None:
        """Serve nodes and commands until told to end."""
        host, _, port = self._config["listen_addr"].rpartition(":")
        await asyncio.start_server(wire.handler(self._serve_node), host, int(port))
        await asyncio.start_unix_server(
            wire.handler(self._serve_command), self._config["unix_socket"]
        )
        await wire.wait_for_end()

    # --- nodes -----------------------------------------------------------------------------------

    async def _serve_node(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await wire.receive(reader)
        if "log_out" in request:
            self._log_out(request["log_out"])
            wire.send(writer, {})
            return
        try:
            node = self._admit(request)
        except RefusedError as error:
            wire.send(writer, {"error": str(error)})
            return
        key = node["node_key"]
        node["at"] = request["at"]
        self._links[key] = writer
        self._tell_all()
        try:
            await reader.read()  # nothing more comes but the end
        finally:
            if self._links.get(key) is writer:  # else it is back already
                del self._links[key]
                node["last_seen"] = datetime.now(UTC).isoformat()
                self._tell_all()

    def _admit(self, request: Message) -> Message:
        """Return the node that asks; raises RefusedError."""
        known = [node for node in self._nodes if node["node_key"] == request["node_key"]]
        if known and not known[0]["expired"]:
            return known[0]
        key = self._use_key(request["auth_key"])
        if known:
            known[0]["expired"] = False
            return known[0]
        number = self._next_id()
        node = {
            "id": number,
            "node_key": request["node_key"],
            "name": request["hostname"],
            "given_name": self._free_name(request["hostname"].lower()),
            "ip_addresses": [f"100.64.0.{number}", f"fd7a:115c:a1e0::{number:x}"],
            "ephemeral": key["ephemeral"] or request["ephemeral"],
            "expired": False,
            "last_seen": datetime.now(UTC).isoformat(),
        }
        self._nodes.append(node)
        return node

    def _use_key(self, wanted: str | None) -> Message:
        for key in self._keys:
            if key["key"] == wanted:
                if key["expires_s"] <= time.time():
                    raise RefusedError("authkey expired")
                if key["used"] and not key["reusable"]:
                    raise RefusedError("authkey already used")
                key["used"] = True
                return key
        raise RefusedError("handling register with auth key: auth-key not found")

    def _free_name(self, wanted: str) -> str:
        if wanted not in {node["given_name"] for node in self._nodes}:
            return wanted
        letters = string.ascii_lowercase + string.digits
        return f"{wanted}-{''.join(secrets.choice(letters) for _ in range(8))}"

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _log_out(self, node_key: str) -> None:
        for node in [node for node in self._nodes if node["node_key"] == node_key]:
            node["expired"] = True
            if node["ephemeral"]:
                self._nodes.remove(node)
        self._tell_all()

    def _tell_all(self) -> None:
        """Keep what has changed, and send every node its new list, itself first."""
        kept = [self._users, self._keys, self._nodes, self._last_id]
        self._file.write_text(json.dumps(kept))
        for key, writer in self._links.items():
            nodes = sorted(self._list(), key=lambda node: node["node_key"] != key)
            wire.send(writer, {"domain": self._config["dns"]["base_domain"], "nodes": nodes})

    def _list(self) -> list[Message]:
        return [node | {"online": node["node_key"] in self._links} for node in self._nodes]

    # --- commands --------------------------------------------------------------------------------

    async def _serve_command(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        flags = argparse.Namespace(**await wire.receive(reader))
        try:
            answer = self._answer(flags)
        except RefusedError as error:
            wire.send(writer, {"error": str(error)})
            return
        self._tell_all()
        wire.send(writer, {"answer": answer})

    def _answer(self, flags: argparse.Namespace) -> Message | list[Message] | None:
        match flags.words:
            case ["health"]:
                return None
            case ["users", "create", name]:
                self._users.append(name)
                return {"id": len(self._users), "name": name}
            case ["nodes", "list"]:
                return self._list()
            case ["preauthkeys", "create"]:
                return self._make_key(flags)
            case ["preauthkeys", "expire"] if 0 < flags.id <= len(self._keys):
                self._keys[flags.id - 1]["expires_s"] = 0.0
                return None
        raise RefusedError(f"{' '.join(flags.words)}: no such command, or no such id")

    def _make_key(self, flags: argparse.Namespace) -> Message:
        if not 0 < flags.user <= len(self._users):
            raise RefusedError(f"no user has the id {flags.user}")
        key = {
            "id": len(self._keys) + 1,
            "key": f"hskey-auth-{secrets.token_hex(6)}-{secrets.token_hex(32)}",
            "reusable": flags.reusable,
            "ephemeral": flags.ephemeral,
            "used": False,
            "expires_s": time.time() + float(flags.expiration[:-1]) * UNITS_S[flags.expiration[-1]],
        }
        self._keys.append(key)
        return key


def main(words: Sequence[str]) -> int:
    """Serve, or ask the one that serves."""
    flags = wire.Flags("headscale")
    flags.add_argument("-c", "--config", type=Path, required=True)
    flags.add_argument("-o", "--output", choices=["json"])
    flags.add_argument("-u", "--user", type=int, default=0)
    flags.add_argument("-e", "--expiration", default="1h")
    flags.add_argument("--id", type=int, default=0)
    for switch in ("--force", "--reusable", "--ephemeral"):
        flags.add_argument(switch, action="store_true")
    flags.add_argument("words", nargs="+")
    found = flags.read(words)
    config = json.loads(found.config.read_text())
    if found.words == ["serve"]:
        asyncio.run(Control(config).serve())
        return 0
    with socket.socket(socket.AF_UNIX) as asking:
        try:
            asking.connect(config["unix_socket"])
        except OSError as error:
            print(f"cannot reach headscale at {config['unix_socket']}: {error}", file=sys.stderr)
            return 1
        asking.sendall(json.dumps(vars(found), default=str).encode() + b"\n")
        answer = json.loads(asking.makefile("rb").readline() or b'{"error": "headscale ended"}')
    if "error" in answer:
        print(f"Error: {answer['error']}", file=sys.stderr)
        return 1
    print(json.dumps(answer["answer"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
