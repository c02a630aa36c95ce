"""The client of openpi's protocol. An observation → the server's answer, or an error in time.

One connection, used by one thread at a time, opened when it is needed: after an error, the next
call connects again. Differences from openpi's own client, which waits for ever: every wait has a
deadline, pings are off (openpi's server answers none while its policy computes), and an answer
that comes too late is never taken for the next one, because its connection is closed.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any, Final

from python_socks import ProxyConnectionError, ProxyError, ProxyTimeoutError
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidProxy,
    InvalidStatus,
    InvalidURI,
)
from websockets.exceptions import ProxyError as WebSocketProxyError
from websockets.sync.client import ClientConnection, connect

from crane_x7_remote.addresses import without_password
from crane_x7_remote.errors import ExitCode, RemoteError
from crane_x7_remote.policy_server import wire
from crane_x7_vla_rl.file_errors import why
from crane_x7_vla_rl.log_text import shown

URL: Final = re.compile(
    r"(?:(?P<scheme>wss?)://)?(?P<rest>(?:[^/\s:@\[]+|\[[0-9a-fA-F:]+\])(?::\d+)?(?:/\S*)?)"
)
CLOSE_S: Final = 0.1
"""How long a closing handshake may take: a server that computes does not answer one."""
BIGGEST_ANSWER: Final = 16 * 1024 * 1024
"""Bytes; a chunk of 1000 steps of 32 columns has 0.3 MB."""
UNAUTHORISED: Final = (401, 403)
PROXY_ERRORS: Final = (
    ProxyConnectionError, ProxyError, ProxyTimeoutError, WebSocketProxyError, InvalidProxy,
)  # fmt: skip


class PolicyServerError(RemoteError):
    """The policy server is unreachable, refused, failed, or sent what the protocol forbids."""

    exit_code = ExitCode.POLICY_LOAD


class AnswerTimeoutError(PolicyServerError):
    """The server did not answer in time."""


class PolicyClient:
    """Asks one policy server."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        connect_timeout_s: float = 10.0,
        answer_timeout_s: float = 1.0,
        proxy: str | None = None,
    ) -> None:
        """`url`: ws://host:port, wss://host, or host:port; `proxy`: socks5h://host:port, which
        resolves names itself, socks5:// or http://. Nothing is sent yet.

        Raises PolicyServerError for a text that is no address.
        """
        match = URL.fullmatch(url.strip())
        if match is None:
            raise PolicyServerError(
                f"{shown(url)} is not the address of a policy server; expected ws://host:port, as"
                " in ws://192.168.1.20:8000"
            )
        self.url = f"{match['scheme'] or 'ws'}://{match['rest']}"
        self.connect_timeout_s = connect_timeout_s
        self.answer_timeout_s = answer_timeout_s
        self.connections = 0
        """How often it has connected."""
        self._api_key = api_key
        self._proxy = proxy
        self._link: ClientConnection | None = None
        self._metadata: Mapping[str, Any] = {}

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the server sent on connecting; connects first if need be. Raises
        PolicyServerError."""
        if self.connections == 0:
            self._connected(self.connect_timeout_s)
        return self._metadata

    def infer(
        self, observation: Mapping[str, Any], timeout_s: float | None = None
    ) -> Mapping[str, Any]:
        """Return the server's answer, within `timeout_s` (default: `answer_timeout_s`) in all.

        Raises PolicyServerError; the connection is then closed.
        """
        limit_s = self.answer_timeout_s if timeout_s is None else timeout_s
        deadline_s = time.monotonic() + limit_s
        message = wire.pack(observation)
        link = self._connected(min(limit_s, self.connect_timeout_s))
        try:
            _limit_sends(link, deadline_s - time.monotonic())
            link.send(message)
            content = link.recv(timeout=max(deadline_s - time.monotonic(), 0.0))
        except (TimeoutError, BlockingIOError) as error:
            self.close()
            raise AnswerTimeoutError(
                f"{self.url} did not answer within {limit_s:g} s (POLICY_TIMEOUT)"
            ) from error
        except (ConnectionClosed, OSError) as error:
            self.close()
            if time.monotonic() >= deadline_s:
                raise AnswerTimeoutError(
                    f"{self.url} took no request within {limit_s:g} s (POLICY_TIMEOUT)"
                ) from error
            raise PolicyServerError(
                f"{self.url} closed the connection: {_reason(error)}"
            ) from error
        return self._read(content, "an answer")

    def close(self) -> None:
        """Close the connection, if there is one; the next call opens another."""
        link, self._link = self._link, None
        if link is None:
            return
        with contextlib.suppress(OSError, ConnectionClosed):
            # A send that hangs holds the connection's lock: without its socket it ends.
            link.socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError, ConnectionClosed, TimeoutError):
            link.close()

    def _connected(self, timeout_s: float) -> ClientConnection:
        if self._link is not None:
            return self._link
        headers = {} if self._api_key is None else {"Authorization": f"Api-Key {self._api_key}"}
        deadline_s = time.monotonic() + timeout_s
        try:
            opened = connect(
                self.url, additional_headers=headers, compression=None, proxy=self._proxy,
                max_size=BIGGEST_ANSWER, open_timeout=timeout_s, close_timeout=CLOSE_S,
                ping_interval=None,
            )  # fmt: skip
            link = opened.__enter__()  # `close` ends it, also after a timeout
        except InvalidStatus as error:
            raise PolicyServerError(self._refused(error)) from error
        except PROXY_ERRORS as error:
            raise self._proxy_failed(shown(error)) from error
        except (InvalidURI, InvalidHandshake, ConnectionClosed) as error:
            raise PolicyServerError(
                f"{self.url} does not speak openpi's protocol (WebSocket): {shown(error)}"
            ) from error
        except TimeoutError as error:
            raise PolicyServerError(
                f"no policy server answered at {self.url} within {timeout_s:g} s; check the"
                " address, and that its host can be reached from here"
            ) from error
        except OSError as error:
            if self._proxy is not None:
                raise self._proxy_failed(why(error)) from error
            raise PolicyServerError(
                f"no policy server at {self.url}: {why(error)}; start it, or set POLICY_SERVER to"
                " its address"
            ) from error
        self._link = link
        try:
            content = link.recv(timeout=max(deadline_s - time.monotonic(), 0.0))
        except (TimeoutError, ConnectionClosed) as error:
            self.close()
            raise PolicyServerError(
                f"{self.url} sent no metadata within {timeout_s:g} s: {_reason(error)}; expected"
                " openpi's protocol, whose server begins with a msgpack map"
            ) from error
        self._metadata = self._read(content, "metadata")
        self.connections += 1
        return link

    def _read(self, content: str | bytes, what: str) -> Mapping[str, Any]:
        """Return the map in a message; raises PolicyServerError for a text, which is an error."""
        if isinstance(content, str):
            self.close()
            lines = [line.strip() for line in content.splitlines() if line.strip()]
            raise PolicyServerError(
                f"{self.url} failed: {shown(lines[-1] if lines else 'an empty text', 400)}"
            )
        try:
            found = wire.unpack(content)
        except wire.WireError as error:
            self.close()
            raise PolicyServerError(f"{self.url} sent {what} that is wrong: {error}") from error
        if not isinstance(found, dict):
            self.close()
            raise PolicyServerError(
                f"{self.url} sent {what} that is a {type(found).__name__}, expected a map"
            )
        return found

    def _proxy_failed(self, cause: str) -> PolicyServerError:
        return PolicyServerError(
            f"{self.url}: the proxy {without_password(self._proxy or '')} did not connect"
            f" ({cause}); check POLICY_PROXY, that the proxy runs, and that it can reach the server"
        )

    def _refused(self, error: InvalidStatus) -> str:
        status = error.response.status_code
        if status in UNAUTHORISED:
            given = "no API key was sent" if self._api_key is None else "it is not the server's"
            return (
                f"{self.url} refused the API key (HTTP {status}; {given}); set POLICY_API_KEY to"
                " the key that the server was started with"
            )
        body = shown((error.response.body or b"").decode(errors="replace").strip(), 200)
        return f"{self.url} refused the connection with HTTP {status}: {body}"


def _limit_sends(link: ClientConnection, timeout_s: float) -> None:
    """Let the kernel end a send that the server does not read; websockets' own has no limit."""
    seconds, fraction = divmod(max(timeout_s, 0.001), 1)
    limit = struct.pack("ll", int(seconds), int(fraction * 1e6))
    link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def _reason(error: Exception) -> str:
    if isinstance(error, ConnectionClosed):
        closed = error.rcvd
        if closed is None:
            return "it ended without a farewell"
        return f"code {closed.code} {shown(closed.reason, 200)}".strip()
    if isinstance(error, OSError) and str(error):
        return why(error)
    return "nothing came"
