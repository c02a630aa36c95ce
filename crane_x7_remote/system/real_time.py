"""Real-time priority for a thread with deadlines."""

from __future__ import annotations

import logging
import os

logger = logging.getLogger(__name__)

FIFO_PRIORITY = 10


def ask_for_real_time() -> None:
    """Give this thread real-time priority if the machine allows it."""
    try:
        policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(FIFO_PRIORITY))
    except (OSError, AttributeError) as error:
        logger.info("no real-time priority (%s); it may be late on a busy machine", error)
    else:
        logger.info("this thread has real-time priority")
