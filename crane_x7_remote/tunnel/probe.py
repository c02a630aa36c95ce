"""Whether a rosbridge server answers at an address: a WebSocket handshake, then a close.

A TCP connection alone proves nothing behind a tunnel: ssh accepts it even if no process listens at
the far end.
"""

from __future__ import annotations

import asyncio

from python_socks import ProxyError
from websockets.exceptions import WebSocketException

from crane_x7_remote.errors import PeerUnreachableError
from crane_x7_remote.rosbridge.connection import LinkConfig, close_link, explain, open_link


async def probe(link: LinkConfig) -> None:
    """Return when a WebSocket server has answered.

    Raises PeerUnreachableError with the cause, within `link.open_timeout_s`.
    """
    try:
        connection = await open_link(link)
    except (OSError, TimeoutError, EOFError, ProxyError, WebSocketException) as error:
        raise PeerUnreachableError(
            f"rosbridge at {link.host}:{link.port}: {explain(error, link)}"
        ) from error
    await close_link(connection)


def probe_now(link: LinkConfig) -> None:
    """Like `probe`, for callers without an event loop."""
    asyncio.run(probe(link))
