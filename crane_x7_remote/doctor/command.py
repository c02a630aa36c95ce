"""`crane-x7-remote doctor`: settings and flags → every check, as a table or JSON, and a bundle.

The exit code is 0 if nothing fails, 1 if a check fails, and with --strict 2 if one only warns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from crane_x7_remote import settings as settings_module
from crane_x7_remote.doctor import (
    access,
    accounts,
    configuration,
    disk,
    drawing,
    gpu,
    policy,
    robot,
    runner,
    tailnet,
)
from crane_x7_remote.doctor.finding import Check, Context, Result, State
from crane_x7_vla_rl import tables
from crane_x7_vla_rl.fields import argument_type

CHECKS: Final = (
    *configuration.CHECKS, *gpu.CHECKS, *drawing.CHECKS, *disk.CHECKS, *tailnet.CHECKS,
    *access.CHECKS, *robot.CHECKS, *policy.CHECKS, *accounts.CHECKS,
)  # fmt: skip
GROUPS: Final = tuple(dict.fromkeys(check.group for check in CHECKS))
TIMEOUT_S: Final = 60.0
FAILED, WARNED = 1, 2
"""Exit codes; see docs/exit-codes.md."""
FLAGS: Final = (
    "rosbridge_host", "rosbridge_port", "rosbridge_proxy", "rosbridge_token", "camera_topic",
    "wrist_camera_topic", "joint_states_topic", "vla_policy", "vla_model_path", "vla_device",
    "vla_unnorm_key", "vla_inference_rate", "max_frame_age", "policy_server", "policy_proxy",
    "policy_api_key", "lerobot_venv",
)  # fmt: skip
WORDS: Final = {
    State.OK: "ok", State.SKIPPED: "skipped", State.WARNING: "WARNING", State.FAILURE: "FAILURE",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `doctor`."""
    add = parser.add_argument
    add("--only", nargs="+", choices=GROUPS, metavar="GROUP", default=list(GROUPS),
        help=f"check only these groups, of {', '.join(GROUPS)}")  # fmt: skip
    add("--timeout", type=_seconds, default=TIMEOUT_S, metavar="S",
        help="seconds after which a check without a result fails (%(default)g)")  # fmt: skip
    add("--strict", action="store_true", help="exit code 2 if a check warns and none fails")
    add("--json", action="store_true", help="print one JSON document")
    add("--bundle", type=Path, metavar="PATH",
        help="also write an archive for a bug report, such as doctor.tar.gz; without"
        " secrets")  # fmt: skip
    settings_module.add_flags(parser, FLAGS)


def run(args: argparse.Namespace) -> int:
    """Check, print, and return the exit code.

    Raises SettingsError for a wrong flag (a wrong variable is a finding), and OutputError if the
    bundle is not written.
    """
    flags = {name: getattr(args, name) for name in FLAGS}
    settings_module.load(flags, {})
    settings, problem = configuration.load(flags)
    context = Context(settings, problem, time.monotonic() + args.timeout)
    wanted = [check for check in CHECKS if check.group in args.only]
    with _quiet(), _progress(wanted) as on_done:
        results = runner.run(wanted, context, on_done)
    if args.json:
        print(json.dumps(document(results), indent=2, ensure_ascii=False))
    else:
        show(results)
    if args.bundle is not None:
        from crane_x7_remote.doctor import bundle

        print(bundle.write(args.bundle, document(results), settings), file=sys.stderr)
    return exit_code(results, args.strict)


def exit_code(results: Sequence[Result], strict: bool) -> int:
    """Return 0, FAILED or WARNED."""
    states = {result.finding.state for result in results}
    if State.FAILURE in states:
        return FAILED
    return WARNED if strict and State.WARNING in states else 0


def document(results: Sequence[Result]) -> dict[str, Any]:
    """Return what --json prints."""
    states = [result.finding.state for result in results]
    return {
        "healthy": State.FAILURE not in states,
        "counts": {state.value: states.count(state) for state in State},
        "checks": [
            {"group": result.check.group, "check": result.check.name}
            | asdict(result.finding)
            | {"took_s": round(result.took_s, 2)}
            for result in results
        ],
    }


def show(results: Sequence[Result]) -> None:
    """Print a table and below it the cures on a terminal, else a line per check and per cure.

    Cures are outside the table, which would fold them: a whole line can be pasted.
    """
    if not sys.stdout.isatty():
        for result in results:
            state, name = WORDS[result.finding.state], f"{result.check.group} {result.check.name}"
            print(f"{state:<7}  {name:<18}  {result.finding.words}")
            if result.finding.cure is not None:
                print(f"{'':<9}{'→':>18}  {result.finding.cure}")
        print(summary(results))
        return
    rows = [
        (result.check.group, result.check.name, WORDS[result.finding.state], result.finding.words)
        for result in results
    ]
    tables.show(summary(results), ("group", "check", "state", "found"), rows)
    for result in results:
        if result.finding.cure is not None:
            print(f"{result.check.group} {result.check.name}: try\n  {result.finding.cure}")


def summary(results: Sequence[Result]) -> str:
    """Return how many checks ended how, in one line."""
    counts = document(results)["counts"]
    verdict = "healthy" if not counts["failure"] else "not healthy"
    listed = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"{verdict}: {listed}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the log of the parts that are checked out of the table; --log-level debug shows it."""
    root = logging.getLogger()
    level = root.level
    if level > logging.DEBUG:
        root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        root.setLevel(level)


@contextlib.contextmanager
def _progress(wanted: Sequence[Check]) -> Iterator[Any]:
    """Show on a terminal how many checks are done, and which ones are not."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    left = [f"{check.group} {check.name}" for check in wanted]
    with Console(stderr=True).status("checking …") as status:

        def on_done(result: Result) -> None:
            left.remove(f"{result.check.group} {result.check.name}")
            status.update(f"{len(left)} checks left: {', '.join(left[:4])}")

        yield on_done


def _seconds(text: str) -> float:
    value = float(argument_type(float)(text))
    if not 1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text}, expected 1 to 3600 seconds")
    return value
