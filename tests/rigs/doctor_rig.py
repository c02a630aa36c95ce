"""One check of doctor, or the whole command as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

from crane_x7_remote import settings
from crane_x7_remote.doctor import runner
from crane_x7_remote.doctor.command import CHECKS
from crane_x7_remote.doctor.finding import Check, Context, Finding

LOGINS = ("HF_", "HUGGING", "WANDB_", "VLA_", "ROSBRIDGE_", "TS_", "SSH_", "POLICY_", "LEROBOT")


def find(name: str) -> Check:
    """The check called `group name`."""
    return next(check for check in CHECKS if f"{check.group} {check.name}" == name)


def context(timeout_s: float = 30.0, **environ: str) -> Context:
    """What the checks get from these variables and no others."""
    return Context(settings.load({}, environ), None, time.monotonic() + timeout_s)


def examine(name: str, within: Context | None = None, **environ: str) -> Finding:
    """The finding of one check."""
    return runner.examine(find(name), within or context(**environ))


def doctor(
    *words: str, timeout_s: float = 110.0, **environ: str
) -> tuple[int, dict[str, dict[str, Any]], str]:
    """Exit code, findings by `group name`, and the log of `crane-x7-remote doctor --json …`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LOGINS)}
    done = subprocess.run(
        [sys.executable, "-m", "crane_x7_remote", "doctor", "--json", *words],
        capture_output=True, text=True, timeout=timeout_s, check=False, env=kept | environ,
    )  # fmt: skip
    if not done.stdout:
        return done.returncode, {}, done.stderr
    checks = json.loads(done.stdout)["checks"]
    found = {f"{check['group']} {check['check']}": check for check in checks}
    return done.returncode, found, done.stderr
