"""A running training, from its start to its end. Looks at its session → lines here, and its end.

The log is read from an offset, so a lost connection loses no line. Each look is a sign of life to
the machine's watchdog. The provider's list is read, too: a machine that was taken away may
vanish without a word.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from crane_x7_remote.cloud.hub_state import HubSilentError, HubState
from crane_x7_remote.cloud.job import Job
from crane_x7_remote.cloud.plan import Pace
from crane_x7_remote.cloud.progress import Progress
from crane_x7_remote.cloud.rental import Rental
from crane_x7_remote.cloud.session import Look, Session
from crane_x7_remote.cloud.ssh import SshLostError
from crane_x7_remote.cloud.types import State, Timing
from crane_x7_remote.errors import CloudError, SettingsError

logger = logging.getLogger(__name__)

TAKEN: Final = (State.EVICTED, State.STOPPED, State.FAILED, State.GONE, State.ENDING)
"""States of a machine that trains no more."""
PHASES: Final = {"installing": "setting up the machine", "training": "training"}
LOW_MB: Final = 2000


class EvictedError(CloudError):
    """The machine was taken away, or restarted: its training is gone, checkpoints may be left."""


@dataclass
class Safety:
    """Whether the machine holds a checkpoint that is nowhere else."""

    job: Job
    hub: HubState
    every_s: float
    saved: int | None = None
    """Step of the newest checkpoint on the machine, as far as is known."""
    uploaded: int | None = None
    """Step of the newest complete one on the Hub, or here."""
    doubt: bool = False
    """Whether a disk from an earlier machine may hold checkpoints that no look has seen."""
    _asked_s: float | None = None

    def see(self, look: Look, now_s: float) -> None:
        """Take in what a look says; ask the Hub where that may change something."""
        if look.saved is not None:
            self.saved, self.doubt = look.saved, False
        if not self.unsafe or not self.job.survives_eviction:
            return
        if self._asked_s is None or now_s - self._asked_s >= self.every_s:
            self._asked_s = now_s
            self.ask()

    def ask(self) -> None:
        """Ask the Hub now; one that is silent changes nothing."""
        if self.job.repo_id is None or self.job.kind != "lerobot":
            return
        try:
            self.uploaded = self.hub.newest(self.job.repo_id)
        except (HubSilentError, SettingsError) as error:
            logger.warning("%s", error)

    @property
    def unsafe(self) -> bool:
        """Whether the newest checkpoint may be on the machine alone."""
        behind = self.uploaded is None or (self.saved is not None and self.uploaded < self.saved)
        return self.doubt or (self.saved is not None and behind)

    def is_home(self) -> None:
        """Note that every checkpoint has come home."""
        self.uploaded, self.doubt = self.saved, False


@dataclass
class Follower:
    """Follows one session."""

    session: Session
    rental: Rental
    safety: Safety
    pace: Pace
    timing: Timing
    write: Callable[[str], None]
    """Takes each line of the log."""
    keeps_volumes: bool
    """Whether the provider's disks outlive a machine."""
    max_cost: float | None = None
    progress: Progress = field(default_factory=Progress)
    offset: int = 0
    last: Look | None = None
    _phase: str = ""
    _told_s: float = 0.0
    _told: str | None = None
    _asked_s: float = 0.0
    _heard_s: float = field(default_factory=time.monotonic)
    _silent: bool = False
    _low: bool = False

    def until_end(self) -> Look:
        """Return the look at the ended training.

        Raises EvictedError, BudgetError, and HostKeyError; also CloudError if nothing was heard of
        the machine for as long as its own watchdog waits.
        """
        while True:
            look = self._look()
            if look is not None:
                drained = self.offset >= look.size
                if look.code is not None and drained:
                    self._lines(self.progress.end(time.monotonic()))
                    return look
                if look.vanished and drained:
                    raise EvictedError(
                        "the training's processes are gone without an exit code: the machine was"
                        " started again, or its memory ran out"
                    )
                if not drained:
                    continue
            self.rental.check_budget()
            self._ask_provider()
            time.sleep(self.pace.follow_s)

    def _look(self) -> Look | None:
        """Return a look, or None while the connection is lost."""
        try:
            look = self.session.look(self.offset)
        except SshLostError as error:
            if not self._silent:
                logger.warning("%s; the training continues without it, reconnecting", error)
            self._silent = True
            self._asked_s = 0.0  # the provider may know why
            if time.monotonic() - self._heard_s > self.timing.dead_man_s:
                raise EvictedError(
                    f"nothing was heard of the machine for {self.timing.dead_man_s:g} s: {error};"
                    " by now it has ended itself"
                ) from error
            return None
        now_s = time.monotonic()
        if self._silent:
            logger.info("connected again")
        self._silent, self._heard_s, self.last = False, now_s, look
        self._take(look, now_s)
        return look

    def _take(self, look: Look, now_s: float) -> None:
        if look.phase != self._phase:
            self._phase = look.phase
            logger.info("%s", PHASES.get(look.phase, look.phase))
        if look.size < self.offset:
            logger.warning(
                "the log on the machine is shorter than before; showing it from its start"
            )
            self.offset = 0
            return
        self.offset += len(look.log)
        self._lines(self.progress.feed(look.log, now_s))
        self.safety.see(look, now_s)
        if self.keeps_volumes and self.rental.keep_volumes != self.safety.unsafe:
            self.rental.keep_volumes = self.safety.unsafe
        if (look.free_mb < LOW_MB) != self._low:
            self._low = look.free_mb < LOW_MB
            if self._low:
                logger.warning("only %d MB are free on the machine's disk", look.free_mb)
        if now_s - self._told_s >= self.pace.tell_s:
            line = self.progress.line(self.rental.cost(), self.max_cost)
            if line is not None and line != self._told:
                self._told, self._told_s = line, now_s
                logger.info("%s", line)

    def _lines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def _ask_provider(self) -> None:
        now_s = time.monotonic()
        if now_s - self._asked_s < self.timing.poll_s:
            return
        machine = self.rental.look()
        self._asked_s = time.monotonic()
        if machine.state in TAKEN:
            raise EvictedError(
                f"the provider took the machine away: {machine.state} ({machine.status})"
            )


def print_line(line: str) -> None:
    """Print a line of the log; a closed terminal ends nothing."""
    try:
        print(line, flush=True)
    except OSError:
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115
