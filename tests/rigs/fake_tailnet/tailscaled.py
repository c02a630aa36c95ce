"""One node in userspace mode: stays joined, and leads its proxies' clients to other nodes.

    tailscaled --socket=PATH --statedir=FOLDER --tun=userspace-networking [--state=PATH|mem:]
        [--socks5-server=HOST:PORT] [--outbound-http-proxy-listen=HOST:PORT]

The `tailscale` command sends one message per connection to the socket and gets {code, text} back;
after an `nc` that went well, the connection is the stream.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import secrets
import sys
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from fake_tailnet import wire
from fake_tailnet.wire import Message, RefusedError, Stream

RETRY_S = 0.3
"""Between two calls of a control server that does not answer."""
DIAL_TIMEOUT_S = 10.0
"""How long a call to a node that is offline takes to fail."""
NEVER = "0001-01-01T00:00:00Z"
GRANTED, FAILED = bytes([5, 0, 0, 1, *bytes(6)]), bytes([5, 1, 0, 1, *bytes(6)])
BY_IPV4, BY_NAME = 1, 3


class Daemon:
    """The node; its login is kept in a file, unless --state=mem:."""

    def __init__(self, flags: argparse.Namespace) -> None:
        self._flags = flags
        default = Path(flags.statedir, "tailscaled.state")
        self._file = None if flags.state == "mem:" else Path(flags.state or default)
        self._login: Message = {}  # node_key, url, hostname, is_granted; empty: logged out
        if self._file is not None and self._file.exists():
            self._login = json.loads(self._file.read_text())
        self._at = f"fake-tailnet-{secrets.token_hex(8)}"
        self._link: asyncio.Task[None] | None = None
        self._netmap: Message | None = None
        self._is_online = False
        self._trouble = ""

    async def serve(self) -> None:
        """Serve until told to end; raises OSError if a port is taken."""
        for address, serve in (
            (self._flags.socks5_server, self._serve_socks),
            (self._flags.outbound_http_proxy_listen, self._serve_http),
        ):
            if address is not None:
                host, _, port = address.rpartition(":")
                await asyncio.start_server(wire.handler(serve), host, int(port))
        await asyncio.start_unix_server(wire.handler(self._serve_node), f"\0{self._at}")
        await asyncio.start_unix_server(wire.handler(self._serve_command), self._flags.socket)
        if self._login:
            self._link = asyncio.create_task(self._stay_joined(None, asyncio.Future()))
        await wire.wait_for_end()

    # --- the control server ----------------------------------------------------------------------

    async def _stay_joined(self, key: str | None, verdict: asyncio.Future[str]) -> None:
        """Follow the control server until it refuses us; its first word goes to `verdict`."""
        while True:
            try:
                await self._follow(key, verdict)
            except RefusedError as error:
                self._forget(f"You are logged out. The last login error was: {error}")
                if not verdict.done():
                    verdict.set_result(str(error))
                return
            except (OSError, EOFError) as error:
                refused = isinstance(error, ConnectionRefusedError)
                word = "connect: connection refused" if refused else error
                self._trouble = f'fetch control key: Get "{self._login["url"]}/key": {word}'
            finally:
                self._is_online = False
            await asyncio.sleep(RETRY_S)

    async def _follow(self, key: str | None, verdict: asyncio.Future[str]) -> None:
        reader, writer = await self._call_control()
        with contextlib.closing(writer):
            about = {"auth_key": key, "ephemeral": self._file is None, "at": self._at}
            wire.send(writer, self._login | about)
            while True:
                answer = await wire.receive(reader)
                if "error" in answer:
                    raise RefusedError(answer["error"])
                self._netmap, self._is_online, self._trouble = answer, True, ""
                self._login["is_granted"] = True
                if self._file is not None:
                    self._file.write_text(json.dumps(self._login))
                if not verdict.done():
                    verdict.set_result("")

    async def _call_control(self) -> Stream:
        url = urllib.parse.urlsplit(self._login["url"])
        return await asyncio.open_connection(url.hostname, url.port)

    def _forget(self, trouble: str) -> None:
        self._login, self._netmap, self._trouble = {}, None, trouble
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    # --- the tailscale command -------------------------------------------------------------------

    async def _serve_command(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        request = await wire.receive(reader)
        if request["do"] == "nc":
            try:
                far = await self._dial(request["host"], request["port"])
            except OSError as error:
                where = f'"{request["host"]}", {request["port"]}'
                wire.send(writer, {"code": 1, "text": f"Dial({where}): {error}"})
                return
            wire.send(writer, {"code": 0, "text": ""})
            await wire.splice((reader, writer), far)
            return
        answers = {
            "status": self._status, "up": self._up, "logout": self._log_out, "ping": self._ping
        }  # fmt: skip
        code, text = await answers[request["do"]](request)
        wire.send(writer, {"code": code, "text": text})

    async def _up(self, request: Message) -> tuple[int, str]:
        if self._link is not None:
            self._link.cancel()
        url = request["url"] or self._login.get("url")
        if url is None:
            return 1, "--login-server is missing: this tailscale is a fake without its own server"
        if self._login.get("url") != url:
            key = f"nodekey:{secrets.token_hex(32)}"
            self._login, self._netmap = {"node_key": key, "url": url, "is_granted": False}, None
        self._login["hostname"] = request["hostname"]
        verdict: asyncio.Future[str] = asyncio.Future()
        self._link = asyncio.create_task(self._stay_joined(request["auth_key"], verdict))
        try:
            word = await asyncio.wait_for(asyncio.shield(verdict), request["timeout_s"])
        except TimeoutError:
            return 1, (
                "timeout waiting for Tailscale service to enter a Running state; check health with"
                ' "tailscale status"'
            )
        return (1, f"backend error: {word}") if word else (0, "")

    async def _ping(self, request: Message) -> tuple[int, str]:
        """Answer as for a node that is reached directly; one that is offline never answers."""
        netmap = self._netmap or {"nodes": []}
        for node in netmap["nodes"][1:]:
            if request["host"] in (node["given_name"], *node["ip_addresses"]):
                if not node["online"]:
                    return 1, 'ping "{}" timed out\nno reply'.format(request["host"])
                address = node["ip_addresses"][0]
                return 0, f"pong from {node['given_name']} ({address}) via 127.0.0.1:41641 in 1ms"
        return 1, f"lookup {request['host']}: no such host"

    async def _log_out(self, request: Message) -> tuple[int, str]:
        del request
        if self._link is not None:
            self._link.cancel()
        if self._login:
            try:
                reader, writer = await self._call_control()
                with contextlib.closing(writer):
                    wire.send(writer, {"log_out": self._login["node_key"]})
                    await wire.receive(reader)
            except (OSError, EOFError) as error:
                return 1, f"logging out: {error}"
        self._forget("Tailscale is stopped.")
        return 0, ""

    async def _status(self, request: Message) -> tuple[int, str]:
        nodes = (
            [] if self._netmap is None else [self._entry(node) for node in self._netmap["nodes"]]
        )
        nobody = {"HostName": "", "DNSName": "", "TailscaleIPs": None, "Online": False}
        own = nodes[0] | {"Online": self._is_online} if nodes else nobody
        before = "Starting" if self._login.get("is_granted") else "NeedsLogin"
        state = "Running" if nodes else before
        status = {
            "Version": "fake",
            "TUN": False,
            "BackendState": state,
            "TailscaleIPs": own["TailscaleIPs"],
            "Self": own,
            "Health": [self._trouble] if self._trouble else [],
            "MagicDNSSuffix": "" if self._netmap is None else self._netmap["domain"],
            "Peer": {node["PublicKey"]: node for node in nodes[1:]} if request["peers"] else None,
        }
        if request["json"]:
            return 0, json.dumps(status)
        if state != "Running":
            return 1, "Logged out." if state == "NeedsLogin" else f"Tailscale is {state}."
        lines = [
            f"{node['TailscaleIPs'][0]}  {node['DNSName'].partition('.')[0]}  linux  "
            + ("-" if node["Online"] else "offline")
            for node in nodes
        ]
        return 0, "\n".join(lines)

    def _entry(self, node: Message) -> Message:
        assert self._netmap is not None
        return {
            "PublicKey": node["node_key"],
            "HostName": node["name"],
            "DNSName": f"{node['given_name']}.{self._netmap['domain']}.",
            "OS": "linux",
            "TailscaleIPs": node["ip_addresses"],
            "Online": node["online"],
            "LastSeen": NEVER if node["online"] else node["last_seen"],
            "Expired": node["expired"],
        }

    # --- streams ---------------------------------------------------------------------------------

    async def _dial(self, host: str, port: int) -> Stream:
        """Return a stream to a port of another node; raises OSError."""
        wanted = host.rstrip(".").lower()
        netmap = self._netmap or {"domain": "", "nodes": []}
        for node in netmap["nodes"][1:]:
            name = node["given_name"]
            if wanted in (name, f"{name}.{netmap['domain']}", *node["ip_addresses"]):
                break
        else:
            raise OSError(f"lookup {host}: no such host")
        if not node["online"]:
            await asyncio.sleep(DIAL_TIMEOUT_S)
            raise TimeoutError(f"connect tcp {node['ip_addresses'][0]}:{port}: timed out")
        reader, writer = await asyncio.open_unix_connection(f"\0{node['at']}")
        wire.send(writer, {"port": port})
        try:
            refused = (await wire.receive(reader))["refused"]
        except EOFError as error:
            raise ConnectionResetError(str(error)) from error
        if refused:
            writer.close()
            raise ConnectionRefusedError(
                f"connect tcp {node['ip_addresses'][0]}:{port}: connection was refused"
            )
        return reader, writer

    async def _serve_node(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Lead another node to a port of our loopback, as userspace mode does."""
        port = (await wire.receive(reader))["port"]
        try:
            near = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            wire.send(writer, {"refused": True})
            return
        wire.send(writer, {"refused": False})
        await wire.splice((reader, writer), near)

    async def _serve_socks(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        _, methods = await reader.readexactly(2)
        await reader.readexactly(methods)
        writer.write(bytes([5, 0]))
        _, _, _, kind = await reader.readexactly(4)
        if kind == BY_NAME:
            (length,) = await reader.readexactly(1)
            host = (await reader.readexactly(length)).decode()
        else:
            assert kind == BY_IPV4, f"address type {kind} of SOCKS5 is not known to the fake"
            host = ".".join(str(byte) for byte in await reader.readexactly(4))
        port = int.from_bytes(await reader.readexactly(2), "big")
        await self._lead((reader, writer), (host, port), (GRANTED, FAILED))

    async def _serve_http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, where, _ = head.split(None, 2)
        assert method == "CONNECT", f"{method} through the proxy is not known to the fake"
        host, _, port = where.rpartition(":")
        answers = (b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
        await self._lead((reader, writer), (host, int(port)), answers)

    async def _lead(
        self, client: Stream, target: tuple[str, int], answers: tuple[bytes, bytes]
    ) -> None:
        try:
            far = await self._dial(*target)
        except OSError as error:
            print(f"{target}: {error}", file=sys.stderr, flush=True)
            client[1].write(answers[1])
            return
        client[1].write(answers[0])
        await wire.splice(client, far)


def main(words: Sequence[str]) -> int:
    """Run the node until it is told to end."""
    flags = wire.Flags("tailscaled")
    for name in ("--socket", "--statedir"):
        flags.add_argument(name, required=True)
    flags.add_argument("--tun", choices=["userspace-networking"], required=True)
    for name in ("--state", "--socks5-server", "--outbound-http-proxy-listen", "--port"):
        flags.add_argument(name)
    flags.add_argument("--no-logs-no-support", action="store_true")
    found = flags.read(words)
    try:
        asyncio.run(Daemon(found).serve())
    except OSError as error:
        print(f"tailscaled: listen: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
