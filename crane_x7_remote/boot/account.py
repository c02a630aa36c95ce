"""The account of the role and of ssh sessions: vla if boot is root, else boot's own."""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crane_x7_remote.errors import SettingsError

USER = "vla"


@dataclass(frozen=True)
class Account:
    """One line of /etc/passwd."""

    name: str
    uid: int
    gid: int
    home: Path
    shell: str

    @property
    def is_ours(self) -> bool:
        """Whether this process already runs as this user."""
        return os.geteuid() == self.uid

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables that a login sets."""
        return {
            "HOME": str(self.home),
            "USER": self.name,
            "LOGNAME": self.name,
            "SHELL": self.shell,
        }

    @property
    def popen(self) -> dict[str, Any]:
        """Arguments of subprocess.Popen that make a child run as this user, with all its groups."""
        if self.is_ours:
            return {}
        groups = os.getgrouplist(self.name, self.gid)
        return {"user": self.uid, "group": self.gid, "extra_groups": groups}

    def run(self, script: str, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a shell script as this user, in its home; never raises for its exit code."""
        return subprocess.run(
            ["/bin/sh", "-c", script, "sh", *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            cwd="/",
            env={"PATH": os.defpath} | self.variables,
            **self.popen,
        )


def role_account() -> Account:
    """Return the account of the role. Raises SettingsError if it does not exist."""
    if os.geteuid() == 0:
        try:
            return _of(pwd.getpwnam(USER))
        except KeyError:
            raise SettingsError(
                f"boot runs as root, but user {USER}, who runs the role, does not exist; use the"
                f" image, create the user (useradd --create-home {USER}), or start boot as another"
                " user"
            ) from None
    try:
        return _of(pwd.getpwuid(os.geteuid()))
    except KeyError:
        raise SettingsError(
            f"boot runs as user id {os.geteuid()}, which /etc/passwd does not name; use root or"
            f" {USER} (docker run --user {USER})"
        ) from None


def hand_over(folders: Mapping[str, str | None], account: Account) -> list[str]:
    """Let `account` write into each folder (variable → path), creating missing ones.

    A folder that belongs to root, as docker creates it for a missing volume, is given to the
    account; its contents are not. Returns a line for each folder that stays unwritable.
    """
    problems = []
    for variable, folder in folders.items():
        if folder is None or _may_write(folder, account):
            continue
        if os.geteuid() == 0 and _may_enter(Path(folder).absolute().parent, account):
            _make_and_give(Path(folder), account)
        if not _may_write(folder, account):
            problems.append(
                f"{variable}={folder}: user {account.name} cannot write there; unset it, or name a"
                f" folder outside /root that belongs to {account.name}"
            )
    return problems


def _may_write(folder: str, account: Account) -> bool:
    script = 'mkdir -p -- "$1" && test -w "$1" && test -x "$1"'
    return account.run(script, folder).returncode == 0


def _may_enter(folder: Path, account: Account) -> bool:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return account.run('test -x "$1"', str(existing)).returncode == 0


def _make_and_give(folder: Path, account: Account) -> None:
    with contextlib.suppress(OSError):  # the caller checks the result
        folder.mkdir(parents=True, exist_ok=True)
        if not folder.is_symlink() and folder.stat().st_uid == 0:
            os.chown(folder, account.uid, account.gid)


def _of(entry: pwd.struct_passwd) -> Account:
    return Account(
        entry.pw_name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir), entry.pw_shell or "/bin/sh"
    )
