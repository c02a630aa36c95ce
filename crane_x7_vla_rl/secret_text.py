"""The secrets of this process: any text → the same with `***` in their place; one registry.

Code that reads a secret registers it with `remember`. It is also masked if a library has quoted,
URL-encoded or base64-encoded it.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import quote, quote_plus, unquote

from crane_x7_vla_rl.variables import FILE_PREFIX, OTHERS_SECRET, SECRETS, bare, means_unset

MASK: Final = "***"
SHORTEST: Final = 6
"""Shorter values are not secrets; masking them would garble ordinary words."""
PASSWORD_IN_URL: Final = re.compile(r"\w://[^/@\s:]*:(?P<password>[^/@\s]+)@")

_lock = threading.Lock()
_forms: set[str] = set()
_pattern: re.Pattern[str] | None = None


def remember(*values: str | None) -> None:
    """Mask these values from now on; None and values too short for a secret are skipped."""
    global _pattern
    new = {form for value in values if value for form in _written(value)} - _forms
    if not new:
        return
    with _lock:
        _forms.update(new)
        longest_first = sorted(_forms, key=len, reverse=True)
        _pattern = re.compile("|".join(re.escape(form) for form in longest_first))


def remember_environment(environ: Mapping[str, str]) -> None:
    """Mask every secret of an environment: known names, likely names, and proxies' passwords."""
    for name, value in environ.items():
        if name in SECRETS or OTHERS_SECRET.search(name):
            if not value.startswith(FILE_PREFIX):
                remember(value)
        elif name.upper().endswith("_PROXY"):
            remember_password(value)


def remember_password(url: str | None) -> None:
    """Mask the password in a URL, if it has one."""
    if url and (found := PASSWORD_IN_URL.search(url)):
        remember(found["password"], unquote(found["password"]))


def mask(text: str) -> str:
    """Return `text` with `***` for every registered value."""
    return text if _pattern is None else _pattern.sub(MASK, text)


def _written(value: str) -> Iterable[str]:
    """Return the forms in which `value`, or a long piece of it, may appear in a text."""
    meant = bare(value)
    pieces = meant.split()
    if means_unset(meant):
        return
    for part in {meant, *pieces}:
        if len(part) < SHORTEST:
            continue
        data = part.encode(errors="surrogateescape")
        yield part
        yield repr(part)[1:-1]
        yield json.dumps(part)[1:-1]
        yield json.dumps(json.dumps(part)[1:-1])[1:-1]
        yield quote(data, safe="")
        yield quote_plus(data)
        for offset in range(3):
            yield from _base64(data, offset)


def _base64(data: bytes, offset: int) -> Iterable[str]:
    """Return the base64 of `data` at `offset` bytes (mod 3) in a longer text, without the digits
    at both ends that depend on the bytes around it."""
    digits = base64.b64encode(bytes(offset) + data).decode()
    inner = digits[-(-offset * 8 // 6) : (offset + len(data)) * 8 // 6]
    yield inner
    yield inner.translate(str.maketrans("+/", "-_"))
