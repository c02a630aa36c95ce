"""Restrict the TCP ports on which a child may listen, with Linux's Landlock (6.7 and later).

tailscaled in userspace mode opens its peer API on all addresses of the machine, although its own
network stack serves it as well. If that is denied, it logs "harmless" and continues. See
landlock(7) and https://docs.kernel.org/userspace-api/landlock.html for the numbers below.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""System calls, the same on every architecture."""
ASK_VERSION = 1
NETWORK_VERSION = 4
BIND_TCP = 1
RULE_NET_PORT = 2
PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64))


class _PortRule(ctypes.Structure):
    _fields_ = (("allowed", ctypes.c_uint64), ("port", ctypes.c_uint64))


def is_supported() -> bool:
    """Whether this kernel can restrict TCP ports and permits it."""
    return int(_libc.syscall(CREATE_RULESET, None, 0, ASK_VERSION)) >= NETWORK_VERSION


def listen_only_on(ports: Iterable[int]) -> Callable[[], None]:
    """Return a function that a new child calls before it executes its program; it raises OSError.

    The child and all its children can then bind TCP sockets only to `ports`, and cannot gain
    privileges.
    """
    rules = [_PortRule(BIND_TCP, port) for port in ports]
    asked = _Ruleset(0, BIND_TCP)

    def restrict() -> None:
        size = ctypes.sizeof(asked)
        ruleset = _checked(_libc.syscall(CREATE_RULESET, ctypes.byref(asked), size, 0))
        for rule in rules:
            _checked(_libc.syscall(ADD_RULE, ruleset, RULE_NET_PORT, ctypes.byref(rule), 0))
        _checked(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _checked(_libc.syscall(RESTRICT_SELF, ruleset, 0))
        os.close(ruleset)

    return restrict


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"landlock: {os.strerror(number)}")
    return result
