"""Writes a LeRobotDataset again and again, killed at one of its file operations after another.

`python lerobot_dying_writer.py FOLDER EPISODES EVERY`: run k dies by SIGKILL at its (k·EVERY)-th
file operation, in FOLDER/k, where `added` lists the episodes whose `add` had returned. Ends with
the first run that is through before it would die, and prints how many were killed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from data_rig import FPS, SIZE, episode

from crane_x7_vla_rl.data.lerobot import LeRobotWriter
from crane_x7_vla_rl.data.lerobot import writer as lerobot_writer

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
GROUP = 2


def write(folder: Path, episodes: int, moment: int) -> None:
    added = os.open(folder / "added", os.O_WRONLY | os.O_CREAT)
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event in EVENTS and str(folder) in str(arguments[0]):
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    with LeRobotWriter(folder, FPS, SIZE) as writer:
        for number in range(episodes):
            writer.add(episode(number, 2))
            os.write(added, f"{number}\n".encode())


def main(root: Path, episodes: int, every: int) -> int:
    lerobot_writer.GROUP_EPISODES = GROUP
    for k in range(1, 1000):
        folder = root / str(k)
        folder.mkdir(parents=True)
        child = os.fork()
        if child == 0:
            write(folder, episodes, k * every)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return k - 1
    raise SystemExit("it never came through")


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
