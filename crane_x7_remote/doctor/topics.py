"""What the robot publishes, from rosapi's answer. Link → topic → type, or None without rosapi.

rosbridge's launch file starts rosapi, too; the guard lets no service pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from python_socks import ProxyError
from websockets.exceptions import WebSocketException

from crane_x7_remote.rosbridge import protocol
from crane_x7_remote.rosbridge.connection import LinkConfig, close_link, open_link
from crane_x7_remote.rosbridge.messages import same_type
from crane_x7_remote.rosbridge.protocol import ProtocolError

SERVICE: Final = "/rosapi/topics"
ANSWER_S: Final = 3.0
MOST_NAMED: Final = 4


def published(link: LinkConfig) -> dict[str, str] | None:
    """Return the type of every topic of the robot; None if rosapi does not answer."""
    try:
        return asyncio.run(_ask(link))
    except (OSError, EOFError, ProxyError, WebSocketException, ProtocolError):
        return None


async def _ask(link: LinkConfig) -> dict[str, str] | None:
    connection = await open_link(link)
    try:
        async with asyncio.timeout(ANSWER_S):
            call = {"op": "call_service", "id": "doctor", "service": SERVICE, "args": {}}
            await connection.send(protocol.encode_json(call))
            while True:
                answer = protocol.decode(await connection.recv())
                if answer["op"] == "service_response":
                    return _read(answer)
                if answer["op"] == "status":
                    return None
    finally:
        await close_link(connection)


def _read(answer: Mapping[str, Any]) -> dict[str, str] | None:
    values = answer.get("values")
    if answer.get("result") is not True or not isinstance(values, Mapping):
        return None
    names, types = values.get("topics"), values.get("types")
    if not isinstance(names, list) or not isinstance(types, list):
        return None
    return {str(name): str(kind) for name, kind in zip(names, types, strict=False)}


def explain(topic: str, wanted: str, types: Mapping[str, str]) -> tuple[str, str | None]:
    """Return why nothing comes on `topic`, and another topic of the type `wanted`, if any."""
    found = types.get(topic)
    others = sorted(
        name for name, kind in types.items() if same_type(kind, wanted) and name != topic
    )
    colour = [name for name in others if "depth" not in name.lower() and "infra" not in name]
    if found is not None and same_type(found, wanted):
        return f"the robot has the topic with this type ({found}), but sends nothing", None
    what = f"the robot has it as {found}" if found is not None else "the robot has no such topic"
    listed = ", ".join(others[:MOST_NAMED]) or "none"
    return f"{what}; its topics of type {wanted}: {listed}", next(iter(colour), None)
