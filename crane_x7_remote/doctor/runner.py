"""Runs checks side by side until a deadline. Checks, `Context` → one `Result` per check, in order.

Each check has a daemon thread, so that one that hangs in a library is itself a finding and keeps
neither the others nor the command from ending.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence

from crane_x7_remote.doctor.finding import Check, Context, Finding, Result, Stop, failure, skipped

logger = logging.getLogger(__name__)
GRACE_S = 1.0
"""Checks end their child processes at the deadline; so much later they count as hanging."""


def run(
    checks: Sequence[Check],
    context: Context,
    on_done: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """Return the results in the order of `checks`; `on_done` is called with each as it comes.

    Returns by the context's deadline plus GRACE_S.
    """
    changed = threading.Condition()
    results: dict[int, Result] = {}
    started_s = time.monotonic()

    def work(number: int, check: Check) -> None:
        finding = examine(check, context)
        result = Result(check, finding, time.monotonic() - started_s)
        with changed:
            if number not in results:
                results[number] = result
                on_done(result)
            changed.notify_all()

    for number, check in enumerate(checks):
        name = f"doctor {check.group} {check.name}"
        threading.Thread(target=work, args=(number, check), name=name, daemon=True).start()
    with changed:
        changed.wait_for(lambda: len(results) == len(checks), max(0.0, context.left_s) + GRACE_S)
        for number, check in enumerate(checks):
            if number not in results:
                took_s = time.monotonic() - started_s
                results[number] = Result(check, _hanging(check, took_s), took_s)
                on_done(results[number])
        return [results[number] for number in range(len(checks))]


def examine(check: Check, context: Context) -> Finding:
    """Return what a check finds; an error of the check itself is a finding, too."""
    if check.needs_settings and context.problem is not None:
        return skipped("the settings are wrong; see the check `settings`")
    try:
        return check.run(context)
    except Stop as stop:
        return stop.finding
    except TimeoutError as error:
        return failure(f"no result in time: {error or 'the deadline passed'}", _again(check))
    except Exception as error:
        logger.debug("%s", traceback.format_exc())
        return failure(
            f"the check itself failed ({type(error).__name__}: {error}); please report it",
            "crane-x7-remote doctor --bundle doctor.tar.gz",
        )


def _hanging(check: Check, took_s: float) -> Finding:
    return failure(
        f"no result within {took_s:.0f} s: the check hangs, or the machine is very slow",
        _again(check),
    )


def _again(check: Check) -> str:
    return f"crane-x7-remote doctor --only {check.group} --timeout 300"
