"""The session on a rented machine that runs the training: what is told to it, what it says.

Files and words go through `Ssh` to machine/session.sh; its answer is a `Look`: state and new bytes
of the log. Nothing here waits: the caller owns the clock.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from importlib import resources
from typing import Final

from crane_x7_remote.cloud.ssh import Ssh
from crane_x7_remote.errors import CloudError, SettingsError
from crane_x7_vla_rl.log_text import shown

SCRIPTS: Final = ("session.sh", "setup_env.sh", "train_lerobot_entry.py")
REMOTE_DIR: Final = "/root/lerobot_run"
PLACE: Final = re.compile(r"/[A-Za-z0-9_./-]+")
ID: Final = re.compile(r"[A-Za-z0-9_-]+")
STATE: Final = re.compile(r"session (?P<fields>(?:\w+=\S* ?)+)")
START_S: Final = 60.0


@dataclass(frozen=True)
class Limits:
    """When the machine ends itself; seconds."""

    dead_man_s: float
    """Without a sign of life."""
    deadline_s: float | None
    """From the watchdog's start on; None: never."""
    save_s: float = 900.0
    """How long the training may take to save first."""

    def text(self, outputs: str) -> str:
        """Return the file that session.sh reads."""
        deadline_s = 0.0 if self.deadline_s is None else max(self.deadline_s, 1.0)
        return (
            f"dead_man_cs={max(round(self.dead_man_s * 100), 10)}\n"
            f"deadline_cs={round(deadline_s * 100)}\nsave_cs={round(self.save_s * 100)}\n"
            f"outputs={shlex.quote(outputs)}\n"
        )


@dataclass(frozen=True)
class Look:
    """What a session answered."""

    phase: str
    """waiting, installing, training."""
    code: int | None
    """Exit code of the training; None: it has not ended, or was killed with the whole session."""
    alive: bool
    size: int
    """Bytes of the log so far."""
    free_mb: int
    """On the machine's disk."""
    saved: int | None
    """Step of the newest checkpoint folder, complete or not."""
    ended: str | None
    """Why the training was told to stop: silence, deadline, stopped."""
    started: bool
    log: bytes = field(repr=False, default=b"")
    """From the wanted offset on, at most 256 KiB."""

    @property
    def vanished(self) -> bool:
        """Whether the training is gone without an exit code: the machine was started again."""
        return self.started and not self.alive and self.code is None and self.phase != "waiting"


class Session:
    """One session of one machine."""

    def __init__(self, ssh: Ssh, session_id: str, remote_dir: str = REMOTE_DIR) -> None:
        if not ID.fullmatch(session_id):
            raise CloudError(f"session {shown(session_id)}: expected letters, digits, - and _")
        self.ssh, self.id, self.folder = ssh, session_id, checked(remote_dir)

    @property
    def place(self) -> str:
        """The session's own folder there."""
        return f"{self.folder}/sessions/{self.id}"

    def guard(self, limits: Limits, end_script: str, outputs: str) -> None:
        """Bring the scripts, and start the watchdog. Harmless when repeated."""
        folder = resources.files("crane_x7_remote.cloud") / "machine"
        files = {name: (folder / name).read_bytes() for name in SCRIPTS}
        mine = f"sessions/{self.id}"
        files[f"{mine}/limits"] = limits.text(outputs).encode()
        files[f"{mine}/end.sh"] = end_script.encode()
        self.ssh.put(files, self.folder)
        self._tell("watch")

    def start(self, mode: str) -> None:
        """Start setup_env.sh, once, however often this is called."""
        self._tell("start", mode)

    def look(self, offset: int, timeout_s: float = START_S) -> Look:
        """Give a sign of life, and return state and log from byte `offset` on."""
        done = self.ssh.run(self._words("look", str(offset)), timeout_s=timeout_s)
        line, _, log = done.out.partition(b"\n")
        found = STATE.match(line.decode(errors="replace"))
        if done.code != 0 or found is None:
            last = shown((done.err.strip().splitlines() or [line.decode(errors="replace")])[-1])
            raise CloudError(f"the session on the machine does not answer as expected: {last}")
        return _look(dict(pair.split("=", 1) for pair in found["fields"].split()), log)

    def stop(self) -> None:
        """Tell the training to save and end."""
        self._tell("stop")

    def _tell(self, *words: str) -> None:
        self.ssh.must(self._words(*words), timeout_s=START_S)

    def _words(self, *words: str) -> str:
        return shlex.join(["bash", f"{self.folder}/session.sh", self.id, *words])


def checked(remote_dir: str) -> str:
    """Return a folder on the machine that needs no quoting anywhere. Raises SettingsError."""
    if not PLACE.fullmatch(remote_dir) or ".." in remote_dir.split("/"):
        raise SettingsError(
            f"--remote-dir {shown(remote_dir)}: expected an absolute path of letters, digits, - _ ."
            f" and /, such as {REMOTE_DIR}"
        )
    return remote_dir.rstrip("/")


def _look(fields: dict[str, str], log: bytes) -> Look:
    def number(name: str) -> int | None:
        text = fields.get(name, "-")
        return int(text) if text.isdecimal() else None

    ended = fields.get("ended", "-")
    return Look(
        phase=fields.get("phase", "waiting"),
        code=number("code"),
        alive=fields.get("alive") == "1",
        size=number("size") or 0,
        free_mb=number("free_mb") or 0,
        saved=number("saved"),
        ended=None if ended == "-" else ended,
        started=fields.get("started") == "1",
        log=log,
    )
