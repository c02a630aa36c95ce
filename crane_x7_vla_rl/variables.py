"""Raw text of an environment variable → the intended value, or why it is unusable.

Files, secret stores and templates add line breaks, quotes and byte order marks, and write `null`
for "none". Pure: this module reads no environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

SECRETS: Final = (
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "TS_AUTHKEY", "TS_AUTH_KEY",
)  # fmt: skip
"""Secrets that this project, huggingface_hub, wandb or tailscale read."""
READ_BY_LIBRARIES: Final = ("HF_HOME", "WANDB_DIR")
"""Folders that huggingface_hub and wandb read from the environment."""
OUTPUT_ROOT: Final = "outputs"
"""Default of the variable: the folder below which commands write."""
OTHERS_SECRET: Final = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|SECRET_KEY|AUTH_?KEY|CREDENTIALS?)$"
)
"""Names of secrets that this project does not read; they are masked, and otherwise unchanged."""
UNSET_WORDS: Final = frozenset(
    {"null", "none", "nil", "undefined", "(null)", "<null>", "<nil>", "<none>", "<no value>"}
)
"""Words of platforms for a missing value: JSON, Python, Go, JavaScript, templates."""
INVISIBLE: Final = "\ufeff\u200b\u200c\u200d\u2060\0"
"""Byte order mark and other zero-width characters that editors leave at the ends."""
FILE_PREFIX: Final = "file:"
"""TS_AUTHKEY=file:/path names a file; the path is not a secret and may contain blanks."""


def line_to_complete(environ: Mapping[str, str]) -> str | None:
    """Return the command line that a shell completes, see argcomplete; None otherwise."""
    return environ.get("COMP_LINE") if "_ARGCOMPLETE" in environ else None


def bare(text: str) -> str:
    """Return `text` without blanks, invisible characters and pairs of quotes at its ends."""
    while True:
        stripped = text.strip().strip(INVISIBLE)
        if len(stripped) > 1 and stripped[0] == stripped[-1] and stripped[0] in "\"'`":
            stripped = stripped[1:-1]
        if stripped == text:
            return text
        text = stripped


def is_unset_word(text: str) -> bool:
    """Whether `text` is a word for "no value", such as null; an empty text is not."""
    return bare(text).casefold() in UNSET_WORDS


def means_unset(text: str) -> bool:
    """Whether `text` is empty, or a word for "no value"."""
    return bare(text) == "" or is_unset_word(text)


def output_root(environ: Mapping[str, str]) -> str:
    """Return the folder below which commands write by default."""
    text = environ.get("OUTPUT_ROOT", "")
    return OUTPUT_ROOT if means_unset(text) else bare(text)


def secret(text: str) -> str | None:
    """Return the intended secret; None if the text means "unset".

    Raises ValueError, which names the place but never shows the text, for one that contains a
    blank, a control character or another character that no token contains: a later error would
    print it.
    """
    meant = bare(text)
    if means_unset(meant):
        return None
    is_path = meant.startswith(FILE_PREFIX)
    for place, letter in enumerate(meant, 1):
        if not (letter.isprintable() if is_path else "!" <= letter <= "~"):
            raise ValueError(
                f"holds {_kind(letter)} at character {place} of {len(meant)}; copy the secret"
                " again, in one piece"
            )
    return meant


def _kind(letter: str) -> str:
    if letter in "\r\n":
        return "a line break"
    if letter.isspace():
        return f"a blank (U+{ord(letter):04X})"
    return f"the character U+{ord(letter):04X}"


def tidied(
    environ: Mapping[str, str], secrets: Iterable[str], texts: Iterable[str]
) -> tuple[dict[str, str], list[str]]:
    """Return the cleaned `environ`, for other programs, and a line for each unusable secret.

    `secrets` are stripped; both they and `texts` (names of plain variables) are removed if their
    value is a word for "unset". All other variables are unchanged.
    """
    meant, problems = dict(environ), []
    for name in environ.keys() & set(secrets):
        try:
            value = secret(environ[name])
        except ValueError as error:
            problems.append(f"{name}=***: {error}")
            continue
        if value is not None:
            meant[name] = value
        elif is_unset_word(environ[name]):
            del meant[name]
        else:
            meant[name] = ""
    for name in environ.keys() & set(texts):
        if is_unset_word(environ[name]):
            del meant[name]
        else:
            meant[name] = bare(environ[name])
    return meant, sorted(problems)
