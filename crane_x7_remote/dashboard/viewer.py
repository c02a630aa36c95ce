"""One browser that watches. Board → messages on its WebSocket, the newest only.

The browser confirms each message, and gets the next one only then. So at most one message is on its
way to a viewer: a stalled link holds one image and nothing else, and nobody waits for it. The time
until the confirmation tells how fast the link is, and with it the size and rate of images.

A message: 4 bytes, big-endian, the length of the JSON that follows; JSON; the base camera's JPEG,
possibly empty; the wrist camera's, whose length is `wrist_bytes` in the JSON, 0 without one.
`lag_ms` in it is how long the message before took, confirmation included.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from crane_x7_remote.dashboard.board import Board, as_json
from crane_x7_remote.dashboard.pictures import FIRST_LEVEL, LEVELS, Shrinker

SLOW_S: Final = 0.4
"""A message that takes longer to be confirmed makes images smaller."""
FAST_S: Final = 0.12
FAST_TIMES: Final = 25
"""This number of fast confirmations in a row makes images larger again."""
SILENT_S: Final = 1.0
"""Without news, a message still comes this often: ages grow."""
GONE_S: Final = 60.0
"""A viewer that confirms nothing for this long is disconnected."""
WRIST_LEVELS: Final = 3
"""The wrist camera's image is this many levels smaller: it is shown in a corner of the other."""
POLL_S: Final = 0.05
TRY_AGAIN: Final = 1013
MAX_VIEWERS: Final = 64


class Link:
    """Chooses the level of images for one viewer from the times of its confirmations."""

    def __init__(self) -> None:
        self._index = FIRST_LEVEL
        self._fast = 0

    @property
    def level(self) -> int:
        """Index in LEVELS."""
        return self._index

    def confirmed(self, after_s: float) -> None:
        """Note how long one message took."""
        if after_s > SLOW_S:
            self._index, self._fast = min(self._index + 1, len(LEVELS) - 1), 0
        elif after_s > FAST_S:
            self._fast = 0
        else:
            self._fast += 1
            if self._fast >= FAST_TIMES:
                self._index, self._fast = max(self._index - 1, 0), 0


class Viewers:
    """All browsers that watch one board."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._shrinkers = Shrinker(), Shrinker()
        self.count = 0

    async def serve(self, socket: WebSocket) -> None:
        """Serve one viewer until it leaves."""
        if self.count >= MAX_VIEWERS:
            await socket.accept()
            await socket.close(TRY_AGAIN, f"{MAX_VIEWERS} browsers are watching already")
            return
        await socket.accept()
        self.count += 1
        try:
            await _Viewer(socket, self._board, *self._shrinkers).run()
        except (WebSocketDisconnect, OSError, RuntimeError):
            pass  # it left, at any moment
        finally:
            self.count -= 1


class _Viewer:
    def __init__(self, socket: WebSocket, board: Board, base: Shrinker, wrist: Shrinker) -> None:
        self._socket = socket
        self._board = board
        self._base, self._wrist = base, wrist
        self._link = Link()
        self._version = self._training = -1
        self._picture = self._wrist_picture = self._tick = 0
        self._lag_ms: int | None = None

    async def run(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            begun_s = clock()
            await self._socket.send_bytes(await self._message())
            try:
                async with asyncio.timeout(GONE_S):
                    await self._confirmation()
            except TimeoutError:
                with contextlib.suppress(RuntimeError):
                    await self._socket.close(TRY_AGAIN)
                return
            took_s = clock() - begun_s
            self._lag_ms = round(took_s * 1e3)
            self._link.confirmed(took_s)
            due_s = begun_s + LEVELS[self._link.level].period_s
            await asyncio.sleep(max(0.0, due_s - clock()))
            while self._board.version == self._version and clock() < begun_s + SILENT_S:
                await asyncio.sleep(POLL_S)

    async def _message(self) -> bytes:
        board = self._board
        self._version = board.version
        marks = board.ticks_after(self._tick)
        if marks:
            self._tick = marks[-1][0]
        level = self._link.level
        image, picture = b"", board.picture
        if picture is not None and picture.number != self._picture:
            self._picture = picture.number
            image = await self._base.get(picture, LEVELS[level])
        small, wrist = b"", board.wrist_picture
        if wrist is not None and wrist.number != self._wrist_picture:
            self._wrist_picture = wrist.number
            small = await self._wrist.get(wrist, LEVELS[min(level + WRIST_LEVELS, len(LEVELS) - 1)])
        head = f'{{"state":{board.state_text()},"ticks":{as_json(marks)},"level":{level}'
        head += f',"lag_ms":{as_json(self._lag_ms)},"wrist_bytes":{len(small)}'
        if board.training_version != self._training:
            self._training = board.training_version
            head += f',"training":{board.training_text()}'
        text = (head + "}").encode(errors="replace")
        return len(text).to_bytes(4, "big") + text + image + small

    async def _confirmation(self) -> None:
        """Wait for one message from the browser, whatever it contains."""
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect
        assert self._socket.client_state == WebSocketState.CONNECTED
