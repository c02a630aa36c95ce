"""A trainer that is killed at a moment that it counts to: kill -9 exactly where it hurts.

For `first` of a WarmProcess: `at("learning", "3")` lets its process die as it begins its third
backward pass. Scenes are scripted, so that dying often is cheap.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import rl_rig
import torch

from crane_x7_vla_rl.sim.vector import make as vector
from crane_x7_vla_rl.training.rl import figures as rl_figures

CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.symlink", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR


class Countdown:
    """Kills this process when it has been called `left` times; 0 or less: never."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def at(phase: str, moment: str, folder: str = "") -> None:
    """Die at the `moment`-th event, from 1, of the phase.

    `rollout`: a group of environments predicts; `learning`: a backward pass begins; `files`: a file
    in `folder` is opened for writing, or anything there gets another name or is removed.
    """
    scenes, tick = rl_rig.Scripted({}), Countdown(int(moment))
    vector.make = lambda _: scenes
    rl_figures.plot = rl_rig.empty_curves
    if phase == "rollout":
        scenes.receive = before(scenes.receive, tick)  # type: ignore[method-assign]
    elif phase == "learning":
        torch.autograd.backward = before(torch.autograd.backward, tick)
    else:
        sys.addaudithook(watching(folder, tick))


def before(then: Callable[..., Any], tick: Callable[[], None]) -> Callable[..., Any]:
    def both(*args: Any, **more: Any) -> Any:
        tick()
        return then(*args, **more)

    return both


def watching(folder: str, tick: Callable[[], None]) -> Callable[[str, tuple[Any, ...]], None]:
    def hook(event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and args[2] & WRITING
        # The folder itself is made before anything else, and holds nothing yet.
        if (writes or event in CHANGES) and str(args[0]).startswith(folder + "/"):
            tick()

    return hook
