"""The end of a training: told to save, waited for, its outputs brought home.

While files travel, a thread gives the machine's watchdog signs of life.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from crane_x7_remote.cloud.outputs import Listing, NoRoomError, Outputs
from crane_x7_remote.cloud.session import Look, Session
from crane_x7_remote.cloud.ssh import SshLostError
from crane_x7_remote.errors import CloudError

logger = logging.getLogger(__name__)

NO_LOG = 1 << 60
"""An offset behind every log: only the state is wanted."""
POLL_S = 1.0


class SignsOfLife:
    """Keeps the machine's watchdog quiet for a block."""

    def __init__(self, session: Session, every_s: float) -> None:
        self._session, self._every_s = session, every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="signs of life", daemon=True)

    def __enter__(self) -> SignsOfLife:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join(5.0)

    def _beat(self) -> None:
        while not self._over.wait(self._every_s):
            try:
                self._session.look(NO_LOG)
            except CloudError as error:
                logger.debug("no sign of life: %s", error)


@dataclass(frozen=True)
class Home:
    """Where to, and how patiently."""

    session: Session
    there: str
    here: Path
    heartbeat_s: float
    save_s: float
    home_s: float
    reach_s: float
    """See plan.Pace."""
    tick: Callable[[], None] = lambda: None
    """Called between transfers; raises if the machine was taken away."""

    def stop_training(self) -> Look | None:
        """Tell the training to save and end, and wait for that; None if it takes too long.

        Raises SshLostError if the machine does not answer.
        """
        heard_s = time.monotonic()
        deadline_s = heard_s + self.save_s
        told = False
        while time.monotonic() < deadline_s:
            try:
                if not told:
                    self.session.stop()
                    told = True
                look = self.session.look(NO_LOG)
                heard_s = time.monotonic()
                if not look.alive:
                    return look
            except SshLostError as error:
                if time.monotonic() > heard_s + self.reach_s:
                    raise
                logger.warning("%s", error)
                self.tick()
            time.sleep(min(POLL_S, max(self.save_s / 20, 0.05)))
        logger.warning("the training has not ended within %g s", self.save_s)
        return None

    def bring(self) -> Listing:
        """Bring the outputs home; wait where this computer's disk is full.

        Raises NoRoomError, SshLostError and other CloudErrors after `home_s`.
        """
        deadline_s = time.monotonic() + self.home_s
        with SignsOfLife(self.session, self.heartbeat_s):
            outputs = Outputs(
                self.session.ssh, self.there, self.here, patience_s=self.home_s,
                pause_s=min(5.0, max(self.home_s / 20, 0.05)), tick=self.tick,
            )  # fmt: skip
            while True:
                try:
                    listing = outputs.fetch()
                except NoRoomError as error:
                    if time.monotonic() > deadline_s:
                        raise
                    logger.warning("%s: waiting for room while the machine costs money", error)
                    time.sleep(min(20.0, max(self.home_s / 10, 0.05)))
                else:
                    size = listing.total_bytes / 1e6
                    logger.info(
                        "outputs are home: %d files, %.1f MB, verified, in %s",
                        len(listing.sizes), size, self.here,
                    )  # fmt: skip
                    return listing
