"""Checks run side by side, and neither a hang nor a crash keeps the others from their result."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import doctor_rig
import pytest
from processes import survivors

from crane_x7_remote.doctor import child, runner
from crane_x7_remote.doctor.command import CHECKS, FAILED, GROUPS, WARNED, exit_code
from crane_x7_remote.doctor.finding import (
    Check,
    Context,
    Finding,
    Result,
    Shared,
    State,
    Stop,
    failure,
    ok,
    warning,
)


def check(name: str, run: object) -> Check:
    assert callable(run)
    return Check("test", name, run)


def states(results: list[Result]) -> dict[str, str]:
    return {result.check.name: result.finding.state.value for result in results}


def test_checks_run_side_by_side_and_their_order_is_kept() -> None:
    together = threading.Barrier(4, timeout=10)

    def wait(context: Context) -> Finding:
        del context
        together.wait()
        return ok("all four waited for each other")

    checks = [check(str(number), wait) for number in range(4)]
    results = runner.run(checks, doctor_rig.context())
    assert states(results) == {"0": "ok", "1": "ok", "2": "ok", "3": "ok"}


def test_a_check_that_hangs_is_a_failure_and_the_others_keep_their_results() -> None:
    end = threading.Event()

    def hang(context: Context) -> Finding:
        del context
        end.wait(60)
        return ok("too late")

    within = doctor_rig.context(timeout_s=0.5)
    started_s = time.monotonic()
    results = runner.run([check("hangs", hang), check("well", lambda _: ok("fine"))], within)
    took_s = time.monotonic() - started_s
    end.set()
    assert states(results) == {"hangs": "failure", "well": "ok"}
    assert "the check hangs" in results[0].finding.words
    assert results[0].finding.cure == "crane-x7-remote doctor --only test --timeout 300"
    assert took_s < 10


def test_an_error_of_a_check_is_a_finding_that_names_it() -> None:
    def fail(_: Context) -> Finding:
        raise ZeroDivisionError("in the check")

    def stop(_: Context) -> Finding:
        raise Stop(ok("ended early"))

    results = runner.run([check("fails", fail), check("stops", stop)], doctor_rig.context())
    assert states(results) == {"fails": "failure", "stops": "ok"}
    assert "ZeroDivisionError: in the check" in results[0].finding.words


def test_wrong_settings_are_one_failure_and_everything_that_needs_them_is_skipped() -> None:
    code, found, log = doctor_rig.doctor(
        "--only", "settings", "disk", "robot", ROSBRIDGE_PORT="ninety", MAX_JUMP="-1"
    )
    assert code == FAILED, log
    failed = [name for name, each in found.items() if each["state"] == "failure"]
    assert failed == ["settings settings"]
    words = found["settings settings"]["words"]
    assert "ROSBRIDGE_PORT='ninety'" in words
    assert "MAX_JUMP" in words
    assert found["settings settings"]["cure"].startswith("unset ")
    assert found["robot joints"]["words"].startswith("the settings are wrong")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed with SIGSEGV"),
        ("import os; os.abort()", "crashed with SIGABRT"),
        ("raise RuntimeError('no device')", "RuntimeError: no device"),
        ("print('something else')", "it said nothing"),
    ],
)
def test_how_a_child_died_is_said(program: str, words: str) -> None:
    with pytest.raises(child.ChildError, match=words):
        child.run((sys.executable, "-c", program), 30.0)


def test_a_child_that_hangs_is_killed_with_its_own_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = (
        "import os, subprocess, sys, time;"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{other.pid}}'); time.sleep(600)"
    )
    with pytest.raises(child.ChildError, match="it was killed"):
        child.run((sys.executable, "-c", program), 5.0)
    assert survivors([int(pid) for pid in pids.read_text().split()]) == []


def test_a_shared_result_is_computed_once_and_its_error_reaches_everyone() -> None:
    shared, calls = Shared(), []

    def make() -> int:
        calls.append(1)
        time.sleep(0.1)
        raise ValueError("the one connection failed")

    errors = []

    def ask() -> None:
        try:
            shared.once("robot", make, 10.0)
        except ValueError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(calls) == 1
    assert errors == ["the one connection failed"] * 5


def test_a_shared_result_that_is_late_ends_the_wait() -> None:
    shared, end = Shared(), threading.Event()
    thread = threading.Thread(target=lambda: shared.once("slow", lambda: end.wait(60), 60))
    thread.start()
    while not shared._futures:
        time.sleep(0.01)
    with pytest.raises(TimeoutError, match="slow took longer than the deadline"):
        shared.once("slow", lambda: True, 0.1)
    end.set()
    thread.join(10)


def test_exit_codes_follow_the_worst_finding() -> None:
    well = Result(CHECKS[0], ok("fine"), 0.0)
    doubtful = Result(CHECKS[0], warning("slow", "do this"), 0.0)
    bad = Result(CHECKS[0], failure("broken", "do that"), 0.0)
    assert exit_code([well], strict=True) == 0
    assert exit_code([well, doubtful], strict=False) == 0
    assert exit_code([well, doubtful], strict=True) == WARNED == 2
    assert exit_code([doubtful, bad, well], strict=True) == FAILED == 1


def test_a_finding_has_a_cure_exactly_if_something_is_wrong() -> None:
    with pytest.raises(ValueError, match="cure"):
        Finding(State.FAILURE, "broken")
    with pytest.raises(ValueError, match="cure"):
        Finding(State.OK, "fine", "do this")


def test_words_from_outside_stay_in_one_line() -> None:
    found = failure("a name\n\x1b[31mwith colours", "run this\nand that")
    assert found.words == "a name\\n\\x1b[31mwith colours"
    assert found.cure == "run this\\nand that"


def test_names_of_checks_are_unique_and_groups_are_few() -> None:
    names = [(check.group, check.name) for check in CHECKS]
    assert len(set(names)) == len(names)
    assert len(GROUPS) <= 10
