"""Keys of a terminal and characters of a pipe; the terminal is as before afterwards."""

from __future__ import annotations

import os
import termios
from collections.abc import Iterator
from io import StringIO
from typing import IO

import pytest

from crane_x7_remote.system.keys import ESCAPE, typed_keys


@pytest.fixture
def terminal() -> Iterator[tuple[int, IO[str]]]:
    ours, theirs = os.openpty()
    stream = os.fdopen(theirs, "r")
    yield ours, stream
    stream.close()
    os.close(ours)


def test_keys_come_one_by_one_without_enter(terminal: tuple[int, IO[str]]) -> None:
    ours, stream = terminal
    with typed_keys(stream) as keys:
        os.write(ours, "s青p".encode())
        assert [keys.next(1.0) for _ in range(3)] == ["s", "青", "p"]
        assert keys.next(0.01) is None
        assert not keys.has_ended


def test_an_arrow_is_escape(terminal: tuple[int, IO[str]]) -> None:
    ours, stream = terminal
    with typed_keys(stream) as keys:
        os.write(ours, b"\x1b[A")
        assert keys.next(1.0) == ESCAPE
        assert keys.next(0.01) is None


def test_ctrl_s_is_a_key_and_stops_no_output(terminal: tuple[int, IO[str]]) -> None:
    ours, stream = terminal
    with typed_keys(stream) as keys:
        os.write(ours, b"\x13 ")
        assert [keys.next(1.0) for _ in range(2)] == ["\x13", " "]
        assert os.write(stream.fileno(), b"drawn") == len(b"drawn")
        assert os.read(ours, 100).endswith(b"drawn")


def test_the_terminal_is_restored_after_an_error(terminal: tuple[int, IO[str]]) -> None:
    _, stream = terminal
    before = termios.tcgetattr(stream.fileno())
    changed = []
    with pytest.raises(ZeroDivisionError), typed_keys(stream):
        changed.append(termios.tcgetattr(stream.fileno())[3] != before[3] and 1 // 0)
    assert changed == []
    assert termios.tcgetattr(stream.fileno()) == before


def test_a_pipe_gives_characters_until_its_end() -> None:
    ends, begins = os.pipe()
    with os.fdopen(ends) as stream, typed_keys(stream) as keys:
        os.write(begins, b"\ns")
        os.close(begins)
        assert [keys.next(1.0) for _ in range(2)] == ["\n", "s"]
        assert keys.next(1.0) is None
        assert keys.has_ended


def test_without_any_input_there_are_no_keys() -> None:
    with typed_keys(StringIO("s")) as keys:
        assert keys.has_ended
        assert keys.next(0.01) is None
