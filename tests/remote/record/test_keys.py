"""Keys of a terminal are orders, and the terminal is as before whatever ends the recorder."""

from __future__ import annotations

import os
import queue
import termios
import time
from collections.abc import Callable, Iterator
from typing import IO

import pytest
from record_rig import drain

from crane_x7_remote.record.events import Event, Ordered
from crane_x7_remote.record.keys import key_orders


@pytest.fixture
def terminal() -> Iterator[tuple[int, IO[str]]]:
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "r") as stream:
        yield ours, stream
    os.close(ours)


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end_s = time.monotonic() + seconds
    while not condition() and time.monotonic() < end_s:
        time.sleep(0.01)
    assert condition()


def test_keys_are_orders_and_other_keys_nothing(terminal: tuple[int, IO[str]]) -> None:
    ours, stream = terminal
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    recording = False
    with key_orders(events, lambda: recording, stream) as has_keys:
        assert has_keys
        os.write(ours, b" x")
        wait_for(lambda: events.qsize() == 1)
        recording = True
        os.write(ours, " ü\x1b[Adq".encode())
        wait_for(lambda: events.qsize() == 4)
    words = [event.word for event in drain(events) if isinstance(event, Ordered)]
    assert words == ["start", "stop", "discard", "quit"]


def test_the_terminal_is_restored_after_any_end(terminal: tuple[int, IO[str]]) -> None:
    _, stream = terminal
    before = termios.tcgetattr(stream)
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def fail() -> None:
        with key_orders(events, lambda: False, stream):
            assert not termios.tcgetattr(stream)[3] & termios.ICANON
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert termios.tcgetattr(stream) == before


def test_without_a_terminal_there_are_no_keys_and_no_error() -> None:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    with open(os.devnull) as stream, key_orders(events, lambda: False, stream) as has_keys:
        assert not has_keys
    assert events.empty()


def test_a_terminal_that_goes_away_is_no_error() -> None:
    ours, theirs = os.openpty()
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    with os.fdopen(theirs, "r") as stream, key_orders(events, lambda: False, stream):
        os.close(ours)
        time.sleep(0.3)
    assert all(isinstance(event, Ordered) for event in drain(events))
