"""What a check is and what it returns: `Context` → `Finding`. No I/O.

A check raises a finding with `Stop` to end early; any other exception is a bug, and the runner
reports it as a failure.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

from crane_x7_remote.settings import Settings
from crane_x7_vla_rl.log_text import shown

T = TypeVar("T")
LONGEST_WORDS = 700
"""Characters of what a finding says."""


class State(StrEnum):
    """How a check ended; the order is that of severity."""

    OK = "ok"
    SKIPPED = "skipped"
    """What it would check is not set or not here; the words say what."""
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    state: State
    words: str
    """What was found, in one line without secrets."""
    cure: str | None = None
    """One command that the user can paste; set for warnings and failures."""

    def __post_init__(self) -> None:
        if (self.state in (State.WARNING, State.FAILURE)) != (self.cure is not None):
            raise ValueError(f"{self.state}: a cure belongs to warnings and failures alone")
        object.__setattr__(self, "words", shown(self.words, LONGEST_WORDS))
        if self.cure is not None:
            object.__setattr__(self, "cure", shown(self.cure, LONGEST_WORDS))


def ok(words: str) -> Finding:
    """Return a finding: all is well."""
    return Finding(State.OK, words)


def skipped(words: str) -> Finding:
    """Return a finding: nothing to check, and why."""
    return Finding(State.SKIPPED, words)


def warning(words: str, cure: str) -> Finding:
    """Return a finding: it works, with a limit that the user should know."""
    return Finding(State.WARNING, words, cure)


def failure(words: str, cure: str) -> Finding:
    """Return a finding: it does not work."""
    return Finding(State.FAILURE, words, cure)


class Stop(Exception):
    """Ends a check early, with its finding."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.words)
        self.finding = finding


@dataclass
class Shared:
    """Results that several checks need, each computed once, by whoever needs it first."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _futures: dict[str, Future[Any]] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], T], timeout_s: float) -> T:
        """Return what `make` returns, or raise what it raises; waits for another thread's call."""
        with self._lock:
            future, is_ours = self._futures.get(name), False
            if future is None:
                future = self._futures[name] = Future()
                is_ours = True
        if is_ours:
            try:
                future.set_result(make())
            except BaseException as error:  # every waiting check must see it
                future.set_exception(error)
        try:
            found: T = future.result(max(0.0, timeout_s))
        except FutureTimeoutError:
            if future.done():
                raise
            raise TimeoutError(f"{name} took longer than the deadline") from None
        return found


@dataclass(frozen=True)
class Context:
    """What every check gets."""

    settings: Settings
    """As the loop would have them; the defaults if `problem` says what is wrong with them."""
    problem: str | None
    """Why the settings are refused; None if they are right."""
    deadline_s: float
    """On the monotonic clock: when every check must have ended."""
    shared: Shared = field(default_factory=Shared)

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline_s - time.monotonic()

    def is_set(self, *names: str) -> bool:
        """Whether a variable or a flag sets one of these fields."""
        return any(name in self.settings.model_fields_set for name in names)

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Return a result that several checks share."""
        return self.shared.once(name, make, self.left_s)


@dataclass(frozen=True)
class Check:
    """One check, by its names in the table."""

    group: str
    name: str
    run: Callable[[Context], Finding]
    needs_settings: bool = True
    """Skipped while the settings are wrong."""


@dataclass(frozen=True)
class Result:
    """A check's finding, and how long it took."""

    check: Check
    finding: Finding
    took_s: float
