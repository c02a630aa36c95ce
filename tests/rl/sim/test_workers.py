"""Processes that answer: errors come back, deaths are named, none stays behind."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from adder import make_adder, make_nothing
from places import RIGS, ROOT

from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.sim.workers import Workers


def test_each_worker_answers_what_it_was_asked() -> None:
    with Workers(2, partial(make_adder, 10)) as workers:
        for worker in range(2):
            workers.send(worker, worker)
        assert workers.ready([0, 1])
        assert [workers.receive(worker) for worker in range(2)] == [10, 11]


def test_an_error_comes_back_with_its_line_and_the_worker_goes_on() -> None:
    with Workers(1, partial(make_adder, 1)) as workers:
        workers.send(0, "words")
        with pytest.raises(SimError, match=r"return os\.getpid"):
            workers.receive(0)
        workers.send(0, 1)
        assert workers.receive(0) == 2


def test_a_simulation_that_cannot_start_says_the_cure() -> None:
    with Workers(1, make_nothing) as workers:
        workers.send(0, 1)
        with pytest.raises(SimError, match=r"^no Vulkan device here$"):
            workers.receive(0)


def test_what_all_workers_log_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Workers(2, partial(make_adder, 1)) as workers:
        for worker in range(2):
            workers.send(worker, "say")
            assert workers.receive(worker) is None
    assert [record.getMessage() for record in caplog.records] == ["rendering on the GPU"]


def test_a_death_is_named_and_nobody_waits() -> None:
    with Workers(2, partial(make_adder, 1)) as workers:
        workers.send(0, "die")
        with pytest.raises(SimError, match=r"simulation 0 exited \(exit code -9\)"):
            workers.receive(0)
        workers.send(1, 1)
        assert workers.receive(1) == 2


def test_no_answer_in_time_is_an_error_and_who_hangs_is_ended_by_force(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("crane_x7_vla_rl.sim.workers.END_S", 0.1)
    with Workers(1, partial(make_adder, 1)) as workers:
        hung = workers.process_id(0)
        os.kill(hung, signal.SIGSTOP)
        workers.send(0, 1)
        with pytest.raises(SimError, match=r"0\.01 s"):
            workers.receive(0, timeout_s=0.01)
    wait_for_the_end([hung])


pytestmark = pytest.mark.timeout(600)  # of which imports take minutes on a busy machine
ASKS = """
import os, sys
from functools import partial
from adder import make_adder
from crane_x7_vla_rl.sim.workers import Workers
if __name__ == '__main__':
    workers = Workers(2, partial(make_adder, 1))
    for worker in range(2): workers.send(worker, 'pid')
    print(*[workers.receive(worker) for worker in range(2)], flush=True)
"""


@contextmanager
def asking(folder: Path, more: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Yield a process that has sent to two workers and then runs `more`, and the workers' ids."""
    script = folder / "asks.py"
    script.write_text(ASKS + "".join(f"    {line}\n" for line in more.splitlines()))
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{RIGS}"},
    ) as process:
        assert process.stdout is not None
        children = [int(word) for word in process.stdout.readline().split()]
        assert len(children) == 2
        try:
            yield process, children
        finally:
            process.kill()
    wait_for_the_end(children)


def wait_for_the_end(children: list[int]) -> None:
    deadline = time.monotonic() + 300
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)


def test_workers_end_with_whoever_asked_even_if_that_was_killed(tmp_path: Path) -> None:
    with asking(tmp_path, "sys.stdin.read()") as (process, _):
        process.kill()


def test_a_signal_for_the_whole_group_leaves_workers_to_the_one_who_asked(tmp_path: Path) -> None:
    """The forkserver lives on as well: a worker can still be restarted, or killed.

    Here the one who asked forgets to close them, and ends all the same.
    """
    more = """import signal
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGINT, lambda *_: None)
print("ready", flush=True)
sys.stdin.readline()
workers.send(0, 1), workers.restart(1), workers.send(1, 2)
print(workers.receive(0), workers.receive(1), workers._processes[0].is_alive(), flush=True)"""
    with asking(tmp_path, more) as (process, _):
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for number in (signal.SIGTERM, signal.SIGINT):
            os.killpg(process.pid, number)
        process.stdin.write("continue\n")
        process.stdin.flush()
        assert process.stdout.readline() == "2 3 True\n"
        assert process.wait(60) == 0
