"""A tailnet of three small programs that stand in for tailscale, tailscaled and headscale.

For machines on which those cannot be built; tailnet_rig.py drives either kind by the same command
lines, and the tests that ask for the fixture `tools` hold both to the same. Flags and
commands that neither rig nor product uses are refused, never ignored. Nothing is encrypted, and
nothing needs more than Python's standard library and Linux.

    nodes      → headscale     TCP, one connection each for as long as it is online; lists of nodes
    tailscaled → tailscaled    one abstract unix socket per connection, so all that is on a tailnet
                               shares a network namespace, and no port is opened (Landlock)
    tailscale  → tailscaled    the unix socket of --socket
    headscale  → headscale     the unix socket of its configuration

What cannot be had here: relay, NAT, STUN and WireGuard; nodes in several network namespaces; names
outside the tailnet through the proxies; a kernel interface (TUN); approval of nodes; ephemeral
nodes that vanish after a while. Who is gone is known at once, which takes the real ones a while;
who is merely stuck is never found out.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

PROGRAMS = ("tailscale", "tailscaled", "headscale")


def install(folder: Path) -> Path:
    """Write the three programs to `folder`, run by the Python that runs this; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS:
        words = [sys.executable, "-P", "-s", "-S", "-m", f"{__name__}.{name}"]
        path = shlex.quote(str(Path(__file__).parents[1]))
        program = folder / name
        program.write_text(f'#!/bin/sh\nPYTHONPATH={path} exec {shlex.join(words)} "$@"\n')
        program.chmod(0o755)
    return folder
