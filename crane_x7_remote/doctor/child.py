"""Probes in separate processes: a name → the JSON that it prints, or how it died.

torch, SAPIEN and Vulkan may hang, abort or crash; in a child that is a finding.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Final

from crane_x7_remote.doctor.finding import Context
from crane_x7_remote.system.parent_death import die_with
from crane_x7_vla_rl.log_text import shown

MARK: Final = "crane-x7-doctor-probe: "
"""Starts the line with a probe's result; libraries print other lines."""
PROBE: Final = (sys.executable, "-m", "crane_x7_remote.doctor.probe")
LEAST_S: Final = 0.1


class ChildError(Exception):
    """A child crashed, hung or failed; says how."""


def probe(context: Context, name: str, *words: str) -> dict[str, Any]:
    """Return what the probe `name` finds, see probe.py; computed once. Raises ChildError."""
    key = " ".join(("probe", name, *words))
    return context.once(key, lambda: run((*PROBE, name, *words), context.left_s))


def run(
    command: tuple[str, ...], timeout_s: float, environ: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the JSON after MARK on the child's standard output; raises ChildError."""
    code, output, errors = call(command, timeout_s, environ)
    lines = [line for line in output.splitlines() if line.startswith(MARK)]
    if code < 0:
        name = signal.Signals(-code).name
        raise ChildError(f"it crashed with {name}: {_last_line(errors)}")
    if code or not lines:
        raise ChildError(_last_line(errors))
    found: dict[str, Any] = json.loads(lines[-1].removeprefix(MARK))
    return found


def call(
    command: tuple[str, ...], timeout_s: float, environ: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Return exit code, output and errors of a program; all its processes end with it.

    Raises ChildError if it cannot be started, or has not ended in time.
    """
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace", start_new_session=True, env=environ,
            preexec_fn=die_with(os.getpid()),
        )  # fmt: skip
    except OSError as error:
        raise ChildError(f"{command[0]} cannot be started: {error.strerror}") from error
    try:
        output, errors = process.communicate(timeout=max(LEAST_S, timeout_s))
    except subprocess.TimeoutExpired as error:
        raise ChildError(f"it had not ended after {timeout_s:.0f} s; it was killed") from error
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    return process.returncode, output, errors


def _last_line(errors: str) -> str:
    """Return the line that names an exception, or else the last one."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return shown(lines[-1] if lines else "it said nothing", 300)
