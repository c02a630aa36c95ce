"""How many threads LeRobot's process takes; runs in our own environment."""

from __future__ import annotations

import os

import pytest

from crane_x7_remote.lerobot.serve import own_threads


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (16, 15)])
def test_a_core_is_left_to_the_loop(
    cores: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert own_threads() == threads
