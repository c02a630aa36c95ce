"""The key pair that opens a rented machine: the user's own, or one made for the run.

Settings, a folder → private key's file and public line. A private key never leaves this computer.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crane_x7_remote import public_keys
from crane_x7_remote.errors import CloudKeyError
from crane_x7_vla_rl import secret_text
from crane_x7_vla_rl.log_text import shown

VARIABLES: Final = ("SSH_PRIVATE_KEY", "VERDA_SSH_PRIVATE_KEY")
"""A file, or the key itself; the first one that is set counts."""
MADE: Final = "id_ed25519"


@dataclass(frozen=True)
class SshKey:
    """What logs in."""

    private: Path
    public: str
    """One line of authorized_keys."""


def choose(values: Mapping[str, str], folder: Path) -> SshKey:
    """Return the key that a variable names, or the run's own, made now if there is none.

    `folder` is made with mode 700. Raises CloudKeyError.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    for name in VARIABLES:
        if text := values.get(name, "").strip():
            return _given(name, text, folder)
    private = folder / MADE
    if not private.exists():
        _keygen("-q", "-t", "ed25519", "-N", "", "-C", "crane-x7", "-f", str(private))
    return SshKey(private, _public(private, "the run's own key"))


def _given(name: str, text: str, folder: Path) -> SshKey:
    if "PRIVATE KEY" in text:
        secret_text.remember(text)
        path = folder / "given_key"
        body = text.replace("\\n", "\n").strip() + "\n"
        with open(path, "w", opener=lambda p, f: os.open(p, f, 0o600)) as file:
            file.write(body)
        path.chmod(0o600)
        return SshKey(path, _public(path, f"{name}=***"))
    path = Path(text).expanduser()
    if not path.is_file():
        raise CloudKeyError(
            f"{name}={shown(text)}: there is no such file; give the private key's file, such as"
            " ~/.ssh/id_ed25519, or leave it empty: then a key is made for each run"
        )
    if path.name.endswith(".pub"):
        raise CloudKeyError(f"{name}={shown(text)} is a public key; give the file without .pub")
    if path.stat().st_mode & 0o077:
        raise CloudKeyError(
            f"{name}={shown(text)}: others may read it, so ssh refuses it; run: chmod 600 {path}"
        )
    return SshKey(path, _public(path, f"{name}={shown(text)}"))


def _public(private: Path, what: str) -> str:
    """Return the public line: of the file beside it, else derived from the private key."""
    beside = private.with_name(f"{private.name}.pub")
    if beside.is_file():
        text = beside.read_text(errors="replace")
    else:
        text = _keygen("-y", "-P", "", "-f", str(private), what=what)
    keys = public_keys.read(text)
    if len(keys.lines) != 1:
        problem = keys.problems[0] if keys.problems else f"{len(keys.lines)} keys"
        raise CloudKeyError(f"{what}: its public key {problem}; make one with ssh-keygen")
    return keys.lines[0]


def _keygen(*words: str, what: str = "") -> str:
    try:
        done = subprocess.run(
            ["ssh-keygen", *words], capture_output=True, text=True, stdin=subprocess.DEVNULL,
            check=False, timeout=30,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise CloudKeyError("ssh-keygen does not exist; install OpenSSH's client") from error
    if done.returncode != 0:
        last = shown((done.stderr.strip().splitlines() or ["no message"])[-1])
        raise CloudKeyError(
            f"{what or words[-1]}: ssh-keygen cannot read it ({last}); a key with a passphrase"
            " needs its public key beside it (.pub) and the agent (ssh-add)"
        )
    return done.stdout
