"""The servers that are compared, each a process: `python -m server_bench.servers NAME`.

`ours` is crane_x7_remote's, `plain` has the shape of openpi's: one handler that unpacks, calls the
policy on the event loop, and packs. Both answer a chunk of 10 × 8 after the same wait, which stands
for a policy on a GPU, and print their port.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import msgpack
import numpy as np

POLICY_S = 0.02
STEPS, JOINTS = 10, 8


def answer(observation: dict[str, Any]) -> dict[str, Any]:
    """A chunk, after the policy's time. JPEGs are decoded, as `serve-policy` does."""
    image = observation["observation/image"]
    if isinstance(image, bytes):
        import simplejpeg

        image = simplejpeg.decode_jpeg(image)
    assert image.shape[2] == 3
    time.sleep(POLICY_S)
    return {"actions": np.zeros((STEPS, JOINTS), np.float32)}


def run_ours() -> None:
    """Serve with crane_x7_remote.policy_server.server."""
    from crane_x7_remote.policy_server.server import ServerConfig, serve

    def answers(observations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [answer(each) for each in observations]

    serve(answers, {}, ServerConfig(port=0), lambda port: print(port, flush=True))


def run_plain() -> None:
    """Serve as openpi's websocket_policy_server.py does."""
    from websockets.asyncio.server import ServerConnection
    from websockets.asyncio.server import serve as listen

    async def handle(connection: ServerConnection) -> None:
        await connection.send(pack({}))
        async for message in connection:
            observation = unpack(message)
            began_s = time.monotonic()
            found = answer(observation)
            found["server_timing"] = {"infer_ms": (time.monotonic() - began_s) * 1e3}
            await connection.send(pack(found))

    async def run() -> None:
        async with listen(handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
            print(next(iter(server.sockets)).getsockname()[1], flush=True)
            await server.serve_forever()

    asyncio.run(run())


def pack(value: object) -> bytes:
    """Pack as openpi_client.msgpack_numpy does."""
    packed: bytes = msgpack.packb(value, default=_array_map)
    return packed


def unpack(message: Any) -> Any:
    """Unpack as openpi_client.msgpack_numpy does."""
    return msgpack.unpackb(message, object_hook=_map_to_array)


def _array_map(value: Any) -> Any:
    return {
        b"__ndarray__": True,
        b"data": value.tobytes(),
        b"dtype": value.dtype.str,
        b"shape": value.shape,
    }


def _map_to_array(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return np.ndarray(
            buffer=value[b"data"], dtype=np.dtype(value[b"dtype"]), shape=value[b"shape"]
        )
    return value


if __name__ == "__main__":
    {"ours": run_ours, "plain": run_plain}[sys.argv[1]]()
