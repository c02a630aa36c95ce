"""Stop the guard in a trial: the loop's own connection first, a separate one if that fails.

A stopped guard stays stopped until `crane-x7-remote resume`; the result is a line for the screen.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from crane_x7_remote.errors import GuardError
from crane_x7_remote.guard import stop as guard_stop
from crane_x7_remote.guard.rules import STOP_TOPIC
from crane_x7_remote.rosbridge import protocol
from crane_x7_remote.rosbridge.client import RosbridgeClient
from crane_x7_remote.rosbridge.connection import LinkConfig
from crane_x7_remote.trial.driver import TrialLoop

logger = logging.getLogger(__name__)

CONFIRM_S: Final = 2.0
STOPPED: Final = "the guard is stopped; `crane-x7-remote resume`, then p, continue"


def stop_guard(
    loop: TrialLoop, client: RosbridgeClient, link: LinkConfig, clock: Callable[[], float]
) -> str:
    """Stop the guard and wait until it has; return what to tell the person.

    `link` is the separate connection, used if the guard has not stopped after `CONFIRM_S` / 2.
    """
    deadline_s, is_told = clock() + CONFIRM_S / 2, False
    while clock() < deadline_s:
        is_told = is_told or client.tell(protocol.publish(STOP_TOPIC, {"data": True}))
        if loop.guard_stopped is not None:
            return STOPPED
        time.sleep(0.01)
    try:
        guard_stop.ask(link, True, "trial")
    except GuardError as error:
        logger.error("%s", error)
        return str(error)
    return STOPPED
