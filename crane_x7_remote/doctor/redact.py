"""Secrets out of texts of any origin: a `Redactor` for logs, settings and outputs of programs.

Two layers. Values that this machine knows as secrets (environment, files that it names, stored
logins) are masked in every form of `secret_text`. What only looks like a secret, because another
machine or program wrote it, is found by its shape. A wrong mask costs a word of a bug report, a
missed secret costs an account: shapes are wide.
"""

from __future__ import annotations

import netrc
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from crane_x7_remote.settings import Settings
from crane_x7_vla_rl import secret_text
from crane_x7_vla_rl.secret_text import MASK

STORED: Final = (
    "~/.netrc", "~/_netrc", "~/.cache/huggingface/token", "~/.cache/huggingface/stored_tokens",
    "~/.huggingface/token", "~/.git-credentials", "~/.config/git/credentials",
)  # fmt: skip
"""Files of logins, whose words are secrets."""
LONGEST_FILE: Final = 100_000
NAMED: Final = (
    r"(?<![\w.-])[\w.-]*(?:token|secret|passw(?:or)?d|passphrase|pwd|api[_-]?key|access[_-]?key"
    r"|auth[_-]?key|private[_-]?key|key[_-]?id|credentials?|cookie)"
)
"""Names of variables and fields that hold secrets."""
VALUE: Final = (
    r"(?:(?P<quote>\\*[\"'])(?:(?!(?P=quote))(?:\\.|.))*(?P=quote)"
    r"|(?P<open>\\*[\"'])[^\n]*|[^\s\"',;{}\[\]][^\s\"']*)"
)
"""A value in quotes, also in escaped ones, or without their end, or one word."""
KEY_END: Final = re.compile(r"-----END [A-Z0-9 ]*PRIVATE KEY")
KEY_LINE: Final = re.compile(r"[A-Za-z0-9+/=]{16,}\s*$")
SHAPES: Final = {
    "private key": re.compile(
        r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----.*?"
        r"(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|\Z)",
        re.DOTALL,
    ),
    "Hub token": re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9_]{8,}"),
    "W&B key": re.compile(
        r"\bwandb_v\d_[A-Za-z0-9_]{16,}|(?<![0-9a-zA-Z])[0-9a-f]{40}(?![0-9a-zA-Z])"
    ),
    "Tailscale key": re.compile(
        r"\b(?:tskey|hskey)-[A-Za-z0-9_-]{6,}"
        r"|\b(?:priv|node|mach|disco|nl)key:[0-9a-f]{16,}|(?<![0-9a-zA-Z])[0-9a-f]{48}(?![0-9a-zA-Z])"
    ),
    "token of another service": re.compile(
        r"\b(?:gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|sk-[\w-]{16,}"
        r"|xox[abprs]-[\w-]{8,}|A(?:KIA|SIA)[A-Z0-9]{12,}|AIza[\w-]{30,}|rpa_[A-Za-z0-9]{16,}"
        r"|ya29\.[\w-]{16,})"
    ),
    "JWT": re.compile(r"\beyJ[\w-]{8,}\.[\w-]{4,}(?:\.[\w-]*)?"),
    "password in an address": re.compile(r"(?<=://)[^/\s@\"'<>]+(?=@)"),
    "login in a netrc": re.compile(r"(?i)(?<=\bpassword)\s+[^\s:=]\S*"),
    "header": re.compile(
        r"(?i)\bbearer\s+[\w.~+/=:-]{8,}|\b(?-i:Basic|Api-Key)\s+[\w.~+/=:-]{8,}"
        r"|\b(?:proxy-)?authorization[\"']?\s*[:=]\s*[^\n\r]*"
    ),
    "query": re.compile(
        r"(?i)(?<=[?&;])(?P<name>[\w.-]*(?:token|key|secret|password|sig|signature|auth|credential)"
        r"[\w.-]*=)[^&\s\"'<>]+"
    ),
    "named value": re.compile(
        rf"(?i)(?P<name>{NAMED}\\*[\"']?\s*(?:=>|[:=])\s*(?:\[\s*)?)"
        rf"(?!(?:\\*[\"'])?\*\*\*|null\b|None\b){VALUE}"
    ),
    "flag": re.compile(rf"(?i)(?P<name>--{NAMED}\s+)(?!\*\*\*|-){VALUE}"),
}  # fmt: skip
"""Kind → shape; the first one that matches masks."""


class Redactor:
    """Masks secrets, and counts them by kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __call__(self, text: str) -> str:
        """Return `text` with MASK for every secret."""
        known = secret_text.mask(text)
        self.counts["known value"] += max(0, known.count(MASK) - text.count(MASK))
        for kind, shape in SHAPES.items():
            known = shape.sub(partial(self._masked, kind), known)
        return self._without_ends_of_keys(known) if KEY_END.search(known) else known

    def _without_ends_of_keys(self, text: str) -> str:
        """Mask private keys whose first line is missing, such as at the start of a cut file."""
        kept: list[str] = []
        for line in text.split("\n"):
            if KEY_END.search(line):
                while kept and KEY_LINE.search(kept[-1]):
                    kept.pop()
                self.counts["private key"] += 1
                line = MASK
            kept.append(line)
        return "\n".join(kept)

    def _masked(self, kind: str, match: re.Match[str]) -> str:
        self.counts[kind] += 1
        found = match.groupdict(default="")
        before = found.get("name") or " " * match[0].startswith(" ")
        quote = found.get("quote") or ""
        return f"{before}{quote or found.get('open') or ''}{MASK}{quote}"


def remember_all(settings: Settings) -> None:
    """Register every secret that this machine knows: settings, files that they name, logins."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if hasattr(value, "get_secret_value"):
            text = value.get_secret_value()
            secret_text.remember(text if not text.startswith("file:") else None)
            if text.startswith("file:"):
                secret_text.remember(*_words(Path(text.removeprefix("file:"))))
    for place in STORED:
        path = Path(place).expanduser()
        secret_text.remember(*(_netrc(path) if path.name.endswith("netrc") else _words(path)))
    if settings.hf_home is not None:
        for name in ("token", "stored_tokens"):
            secret_text.remember(*_words(Path(settings.hf_home, name)))


def _words(path: Path) -> Iterable[str]:
    """Return the long words of a file of secrets."""
    try:
        text = path.read_text(errors="replace")[:LONGEST_FILE]
    except OSError:
        return []
    return [word for word in re.split(r"[\s=:\"'/@]+", text) if len(word) >= 12]


def _netrc(path: Path) -> Iterable[str]:
    try:
        hosts: Mapping[str, tuple[str, str, str]] = netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError):
        return _words(path)
    return [login[2] for login in hosts.values() if login[2]]
