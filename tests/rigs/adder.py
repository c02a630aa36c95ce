"""Workers that add, for processes that import them by name. (request) → request + offset."""

from __future__ import annotations

import logging
import os
import signal
from typing import Any

from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.sim.workers import Handler


def make_adder(offset: int) -> Handler:
    def add(request: Any) -> Any:
        if request == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if request == "say":
            logging.getLogger("crane_x7_vla_rl.sim.render").info("rendering on the GPU")
            return None
        return os.getpid() if request == "pid" else request + offset

    return add


def make_nothing() -> Handler:
    raise SimError("no Vulkan device here")
