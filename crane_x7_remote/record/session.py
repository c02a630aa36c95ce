"""One run of a recorder: events, keys and signals until its end. Queue → episodes and a summary."""

from __future__ import annotations

import logging
import queue
import signal
import time
import types
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from crane_x7_remote.errors import RecordError
from crane_x7_remote.record.events import Ended, Event, Ordered
from crane_x7_remote.record.recorder import Recorder
from crane_x7_remote.record.writing import EpisodeWriter
from crane_x7_remote.rosbridge.record_status import RecordStatus

logger = logging.getLogger(__name__)

TICK_S: Final = 0.05
STATUS_S: Final = 0.5


@dataclass(frozen=True)
class SessionOptions:
    """When a run begins and ends."""

    episodes: int | None = None
    """End after this many new episodes."""
    wait_s: float = 30.0
    """Longest wait for the first message of each topic."""
    starts: bool = False
    """Start the first episode as soon as every topic sends."""


@dataclass(frozen=True)
class Summary:
    """What a run has recorded."""

    folder: str
    kept: int
    """Episodes in the data set."""
    new: int
    """Of these, the ones of this run."""
    discarded: int
    ended_early: int
    """Episodes that a lost stream or a step of the clock ended."""
    below_rate: int

    def as_json(self) -> dict[str, Any]:
        """Return it as an object."""
        return asdict(self)

    def in_words(self) -> str:
        """Return it as a line."""
        words = [f"{self.folder}: {self.kept} episodes ({self.new} new)"]
        for count, what in (
            (self.discarded, "discarded"),
            (self.ended_early, "ended early"),
            (self.below_rate, "below their rate"),
        ):
            if count:
                words.append(f"{count} {what}")
        return ", ".join(words)


class StopFlag:
    """True after a signal. A plain flag: the handler runs between two instructions of the main
    thread, which may then hold any lock."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self.is_set = False
        for number in numbers:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        # A second Ctrl-C ends it at once; a lost session often sends its SIGHUP twice.
        signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL)
        self.is_set = True


class Session:
    """Runs a recorder on the main thread."""

    def __init__(
        self,
        recorder: Recorder,
        writer: EpisodeWriter,
        events: queue.SimpleQueue[Event],
        options: SessionOptions,
        tell: Callable[[RecordStatus], None],
        explain: Callable[[str], str | None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`tell` publishes the state; `explain` says why a topic's messages are of no use."""
        self._recorder, self._writer, self._events = recorder, writer, events
        self._options, self._tell, self._explain, self._clock = options, tell, explain, clock
        self._before = writer.kept
        self._ended: Ended | None = None
        self._told: RecordStatus | None = None
        self._tell_s = 0.0

    def wait(self, stop: StopFlag) -> bool:
        """Wait until every topic has sent something; False after a signal. Raises RecordError."""
        deadline_s = self._clock() + self._options.wait_s
        while not stop.is_set and self._ended is None:
            self._take()
            missing = self._recorder.missing()
            if not missing:
                return True
            if self._clock() > deadline_s:
                raise RecordError(self._why(missing))
        return False

    def run(self, stop: StopFlag) -> Summary:
        """Record until a signal, `q`, the last episode, or the end of input."""
        recorder, writer = self._recorder, self._writer
        if self._options.starts:
            recorder.handle(Ordered("start", "--start"))
        while not (stop.is_set or self._ended or writer.failure or recorder.failure):
            self._take()
            recorder.tick(self._clock())
            self._report()
            wanted = self._options.episodes
            if wanted is not None and writer.kept - self._before >= wanted:
                break
        recorder.end()
        writer.close_waiting()
        self._report(now=True)
        return self.summary()

    def summary(self) -> Summary:
        """Return what was recorded so far."""
        recorder, kept = self._recorder, self._writer.kept
        return Summary(
            folder=str(recorder.options.folder),
            kept=kept,
            new=kept - self._before,
            discarded=recorder.discarded + self._writer.refused,
            ended_early=recorder.cut,
            below_rate=recorder.low,
        )

    def _take(self) -> None:
        """Handle what has come; wait up to TICK_S for the first of it."""
        try:
            event = self._events.get(timeout=TICK_S)
            for _ in range(200):
                if isinstance(event, Ended):
                    self._ended = event
                    if event.failure is not None:
                        logger.warning("%s", event.why)
                    return
                if isinstance(event, Ordered) and event.word == "quit":
                    self._ended = Ended("q was pressed")
                    return
                self._recorder.handle(event)
                event = self._events.get_nowait()
        except queue.Empty:
            pass

    def _report(self, now: bool = False) -> None:
        status, now_s = self._recorder.status(), self._clock()
        news = self._told is None or status.recording != self._told.recording
        if now or news or status.kept != (self._told or status).kept or now_s >= self._tell_s:
            self._told, self._tell_s = status, now_s + STATUS_S
            self._tell(status)

    def _why(self, missing: list[str]) -> str:
        lines = []
        for topic in missing:
            reason = self._explain(topic)
            lines.append(f"{topic} ({reason})" if reason else topic)
        return (
            f"nothing usable came within {self._options.wait_s:g} s on {', '.join(lines)}; check"
            " the topic's name and that its node runs. A guard passes further topics with"
            " GUARD_TOPICS"
        )
