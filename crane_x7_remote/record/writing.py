"""The thread that writes episodes into the data set. Episodes → files, one after another.

Encoding takes seconds, in which the next episode may be recorded already. An episode counts as
kept when it is safe on the disk.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from crane_x7_remote.record.spool import Spool
from crane_x7_vla_rl.data.episode import DataError, Episode, EpisodeError
from crane_x7_vla_rl.data.lerobot import Extras, LeRobotWriter

logger = logging.getLogger(__name__)

Observer = Callable[[int, Episode], None]


@dataclass(frozen=True)
class Finished:
    """An episode whose images are still in its file."""

    episode: Episode
    spool: Spool
    note: str
    """What to log when it is kept."""


class EpisodeWriter:
    """Writes on its own thread, from the first episode to `close`."""

    def __init__(self, folder: Path, resume: bool, kept: int, observe: Observer | None) -> None:
        """`kept` episodes are in the data set already; `observe` sees each one that is added."""
        self._folder, self._resume, self._observe = folder, resume, observe
        self._waiting: queue.SimpleQueue[Finished | None] = queue.SimpleQueue()
        self._writer: LeRobotWriter | None = None
        self.kept = kept
        """Episodes that are safe on disk, including earlier runs."""
        self.refused = 0
        """Episodes that do not fit the data set."""
        self.failure: DataError | None = None
        """Why nothing more can be written."""
        self._thread = threading.Thread(target=self._work, name="writer")
        self._thread.start()

    def add(self, finished: Finished) -> None:
        """Write the episode as soon as possible; the spool is closed afterwards."""
        self._waiting.put(finished)

    def close(self) -> None:
        """Write what waits, and complete the data set; raises DataError if that failed."""
        self.close_waiting()
        if self.failure is not None:
            raise self.failure

    def close_waiting(self) -> None:
        """Write what waits, and complete the data set; a failure is in `failure`."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()

    def _work(self) -> None:
        try:
            while (finished := self._waiting.get()) is not None:
                with_spool = finished.spool
                try:
                    if self.failure is None:
                        self._add(finished)
                finally:
                    with_spool.close()
            if self._writer is not None:
                self._writer.close()
        except DataError as error:
            self.failure = self.failure or error

    def _add(self, finished: Finished) -> None:
        episode = finished.episode
        try:
            if self._writer is None:
                self._writer = _open(self._folder, episode, self._resume)
            number = self._writer.add(episode)
        except EpisodeError as error:
            self.refused += 1
            logger.error("episode discarded: %s", error)
        except DataError as error:
            self.failure = error
            logger.error("nothing more is recorded: %s", error)
        else:
            self.kept = number + 1
            logger.info("episode %d kept: %s", number, finished.note)
            if self._observe is not None:
                self._observe(number, episode)


def _open(folder: Path, episode: Episode, resume: bool) -> LeRobotWriter:
    size, extras = Extras.of(episode)
    return LeRobotWriter(folder, episode.fps, size, resume=resume, extras=extras)
