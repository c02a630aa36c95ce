"""Public keys as platforms and people paste them → one line of authorized_keys per key. Pure.

Keys may be separated by line breaks, blanks, tabs, commas, semicolons or a literal `\\n`, come as a
JSON list, and be quoted. Anything ambiguous is refused with its line and the reason; an error never
shows a key.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from crane_x7_vla_rl.variables import INVISIBLE, bare, is_unset_word

FIELDS: Final = {
    "sk-ecdsa-sha2-nistp256@openssh.com": 4,
    "sk-ssh-ed25519@openssh.com": 3,
    "ecdsa-sha2-nistp256": 3,
    "ecdsa-sha2-nistp384": 3,
    "ecdsa-sha2-nistp521": 3,
    "ssh-ed25519": 2,
    "ssh-rsa": 3,
}
"""Type → number of strings and integers in its blob, the name included (RFC 4253, 5656, 8709,
OpenSSH's PROTOCOL.u2f)."""
TYPE: Final = "|".join(re.escape(name) for name in FIELDS)
SEPARATORS: Final = " ,;|\"'`[]"
"""What may stand between two keys of one line, once blanks are single."""
KEY_BEGINS: Final = re.compile(rf"(?:^|(?<=[{re.escape(SEPARATORS)}]))(?:{TYPE})(?= \S)")
GLUED: Final = re.compile(rf"(?:{TYPE}) ?AAAA")
"""A type within a word, in front of what every blob begins with."""
OPTION: Final = re.compile(
    r"(?:command|environment|from|principals|permitopen|permitlisten|tunnel|expiry-time)=\""
    r"|(?:^|[ ,]|\\[nrt])(?:cert-authority|restrict|verify-required|no-[a-z0-9-]+|pty|user-rc"
    r"|[a-z0-9-]+-forwarding)(?:[ ,]|$)",
    re.IGNORECASE,
)
"""Options of authorized_keys(5): they limit what a key may do, and so must not get lost."""
LINE_BREAK: Final = re.compile(
    r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]"
    rf"|(?:\\r\\n|\\n|\\r|\\t)(?=[\s\"']*(?:{TYPE}|\\[nrt]|#|$))",
    re.MULTILINE,
)
"""Real ones, and literal `\\n` before a key; a comment such as CORP\\nick keeps its own."""


@dataclass(frozen=True)
class Keys:
    """What a variable holds."""

    lines: tuple[str, ...]
    """`type base64 comment`, each a key that sshd can read."""
    problems: tuple[str, ...]
    """`line N …` for each part that is none."""


def read(text: str | None) -> Keys:
    """Return the keys in a variable, in their order, and what could not be read."""
    lines: list[str] = []
    problems: list[str] = []
    for number, line in enumerate(LINE_BREAK.split(_unpacked(text or "")), 1):
        for part, is_last in _parts(line):
            try:
                lines.append(_checked(part, is_last))
            except ValueError as error:
                problems.append(f"line {number} {error}")
    return Keys(tuple(lines), tuple(problems))


def _unpacked(text: str) -> str:
    """Return the lines of a JSON list of keys; any other text as it is."""
    meant = text.strip().strip(INVISIBLE)
    if meant.startswith("["):
        try:
            items = json.loads(meant)
        except ValueError:
            return text
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return "\n".join(items)
    return text


def _parts(line: str) -> Iterator[tuple[str, bool]]:
    """Yield what stands in one line, with single blanks, and whether it is the last: comments and
    words for "none" are left out, keys are taken apart."""
    plain = " ".join(bare(line).split()).strip(SEPARATORS + INVISIBLE)
    if not plain or plain.startswith("#") or is_unset_word(plain):
        return
    begins = [match.start() for match in KEY_BEGINS.finditer(plain)]
    if not begins or begins[0] != 0:
        yield plain, True  # no key, or options before it
        return
    # A comment may name a type; only text that continues like a key begins one.
    begins = [place for place in begins if place == 0 or _goes_on_like_a_key(plain[place:])]
    for start, end in zip(begins, [*begins[1:], None], strict=True):
        yield plain[start:end].strip(SEPARATORS), end is None


def _goes_on_like_a_key(text: str) -> bool:
    return text.split(" ", 2)[1].startswith("AAAA")


def _checked(part: str, is_last: bool) -> str:
    """Return `type base64 comment`. Raises ValueError, without any part of the key."""
    if "PRIVATE KEY" in part:
        raise ValueError("is a private key; use the file that ends in .pub")
    kind, _, rest = part.partition(" ")
    if kind not in FIELDS:
        if OPTION.search(part) and KEY_BEGINS.search(part):
            raise ValueError(
                "begins with options, which are not supported; give only type, key and comment"
            )
        raise ValueError("is not a public key; expected a line such as 'ssh-ed25519 …'")
    blob, _, comment = rest.partition(" ")
    blob, comment = blob.strip(SEPARATORS), comment.strip(SEPARATORS)
    if odd := next((c for c in blob if not c.isascii() or not c.isprintable()), None):
        raise ValueError(f"holds the character U+{ord(odd):04X} inside its {kind} key; remove it")
    if GLUED.search(rest):
        raise ValueError("holds two keys without a separator; put each on its own line")
    if not _is_whole(kind, blob):
        raise ValueError(f"is a damaged or truncated {kind} key; copy the complete line")
    if not is_last and OPTION.search(comment):
        raise ValueError(
            f"holds options behind its {kind} key, for another one; options are not supported"
        )
    if not comment.isprintable():
        comment = "".join(letter for letter in comment if letter.isprintable())
    return f"{kind} {blob} {comment}".rstrip()


def _is_whole(kind: str, text: str) -> bool:
    """Whether base64 `text` is exactly a blob of this kind, with nothing missing and nothing left.

    A blob is a row of strings, each behind its length in four bytes; the first is the kind.
    """
    try:
        blob = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    fields = []
    while len(blob) >= 4:
        length = int.from_bytes(blob[:4], "big")
        if length == 0 or len(blob) < 4 + length:
            return False
        fields.append(blob[4 : 4 + length])
        blob = blob[4 + length :]
    if blob or len(fields) != FIELDS[kind] or fields[0] != kind.encode():
        return False
    return kind != "ssh-ed25519" or len(fields[1]) == 32
