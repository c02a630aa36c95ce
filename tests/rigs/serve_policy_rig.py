"""A `serve-policy` as a process."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def serving(*flags: str, **environ: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The URL and the process of a `serve-policy`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "crane_x7_remote", "serve-policy", "--port=0", *flags],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environ,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"ready: .* at (ws://\S+),", line)
        assert found is not None, line
        yield found[1], process
    finally:
        process.kill()
        process.communicate()
