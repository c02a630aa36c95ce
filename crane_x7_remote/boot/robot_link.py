"""The robot's line of `status`: the loop's metrics file → the state of its link to the robot."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from crane_x7_remote.boot.status_board import State, StatusBoard
from crane_x7_remote.settings import Settings
from crane_x7_vla_rl.file_errors import why

POLL_S = 1.0
SILENT_S = 5.0
"""The loop writes every second; after this long without a write it counts as hanging."""


async def watch(path: Path, settings: Settings, board: StatusBoard) -> None:
    """Keep the board's `robot` up to date; runs until it is cancelled."""
    where = f"rosbridge at {settings.rosbridge_host}:{settings.rosbridge_port}"
    board.set(
        "robot",
        "starting",
        f"the loop is loading its policy and connecting to {where}",
        f"it stops trying PEER_WAIT_TIMEOUT={settings.peer_wait_timeout:g} s after its start; see"
        " the container's log",
    )
    began_s = time.time()
    while True:
        await asyncio.sleep(POLL_S)
        verdict = judge(path, where, began_s, time.time())
        if verdict is not None:
            board.set("robot", *verdict)


def judge(path: Path, where: str, began_s: float, now_s: float) -> tuple[State, str, str] | None:
    """Return state, detail and advice; None before the loop's first write.

    Both times are in seconds since 1970, as the file's modification time; a file from before
    `began_s` belongs to another loop.
    """
    try:
        written_s = path.stat().st_mtime
        if written_s < began_s:
            return None
        age_s = now_s - written_s
        metrics = json.loads(path.read_text())
        link = metrics["link"]
        if age_s > SILENT_S:
            return (
                "down",
                f"the loop has written nothing for {age_s:.0f} s",
                "it hangs, or the disk is full; see the container's log",
            )
        if link.get("connected"):
            return "up", f"{where}, loop {metrics['state']}", ""
        return "down", f"no connection to {where}", str(link.get("last_error") or "")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        return (
            "down",
            f"{path} cannot be read: {why(error)}",
            "give --metrics a file that infer can write",
        )
