"""Why a file cannot be used. An exception → text that follows the file's name in a message."""

from __future__ import annotations

import json
import os
from typing import Final

KINDS: Final = {
    "dict": "an object", "list": "a list", "str": "text", "int": "a number", "float": "a number",
    "bool": "true or false", "NoneType": "nothing",
}  # fmt: skip
"""Python's type of a value in JSON or YAML → its plain name."""


def why(error: Exception) -> str:
    """Return the cause without number, path and Python's terms, which a message does not need."""
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno}: {error.msg}"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    if isinstance(error, OSError) and error.strerror:  # asyncio's text contains an address tuple
        return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
    return str(error)


def kind_in_words(value: object) -> str:
    """Return the kind of `value`, for "the file holds …"."""
    name = type(value).__name__
    return KINDS.get(name, f"a {name}")
