"""A rented machine in a folder: a real sshd with SFTP, its own home, and a stand-in trainer.

Everything that it starts has the folder's path in its environment, so that `kill` ends all of it,
as switching the machine off does. `poweroff`, which the dead-man's switch calls, is a stand-in that
leaves a file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from sshd_rig import Sshd
from tailnet_rig import LOOPBACK

from crane_x7_remote.cloud.types import SshAddress

ROOT = Path(__file__).parents[2]
TRAINER = Path(__file__).with_name("cloud_trainer.py")
MARK = "CLOUD_MACHINE"
"""Variable of every process of a machine: its folder."""
POWEROFF = f"""#!/bin/sh
touch "${MARK}/powered-off"
"""
STAND_IN = """#!/bin/sh
exec {python} {trainer} "$@"
"""


class CloudMachine:
    """One machine; its disk is `disk`, which may outlive it."""

    def __init__(
        self,
        folder: Path,
        public_key: str,
        disk: Path | None = None,
        trainer: Mapping[str, str] | None = None,
        real: bool = False,
    ) -> None:
        """`trainer`: variables of cloud_trainer.py; `real`: this checkout's own trainer instead."""
        folder.mkdir(parents=True)
        self.folder = folder
        self._over = threading.Event()
        self._booting = threading.Lock()
        self.disk = disk or folder / "disk"
        self.remote_dir = str(self.disk / "lerobot_run")
        (self.disk / "home").mkdir(parents=True, exist_ok=True)
        programs = folder / "bin"
        programs.mkdir()
        self._program(programs / "poweroff", POWEROFF)
        path = [str(programs), *os.environ["PATH"].split(os.pathsep)]
        trains = "-m crane_x7_vla_rl.training.cli" if real else TRAINER
        script = STAND_IN.format(python=sys.executable, trainer=trains)
        self._program(programs / "crane-x7-vla-rl", script)
        variables = {
            "HOME": str(self.disk / "home"),
            "PATH": os.pathsep.join(path),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/rigs")]),
            MARK: str(folder),
            "LEROBOT_VENV": str(ROOT / ".venv-lerobot"),
            "OMP_NUM_THREADS": "1",
            **(trainer or {}),
        }
        authorized = folder / "authorized"
        authorized.write_text(f"{public_key}\n")
        self.sshd = Sshd(
            folder / "sshd",
            {
                "AuthorizedKeysFile": str(authorized),
                "Subsystem": "sftp internal-sftp",
                "SetEnv": " ".join(f'{k}="{v}"' for k, v in variables.items()),
                "MaxStartups": "100",
            },
        )

    @staticmethod
    def _program(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    @property
    def address(self) -> SshAddress:
        """Where its sshd answers."""
        return SshAddress(LOOPBACK, self.sshd.port, self.sshd.user)

    @property
    def run_folder(self) -> Path:
        """The working folder, on this machine's own disk."""
        return Path(self.remote_dir)

    @property
    def powered_off(self) -> bool:
        """Whether the dead-man's switch has ended it."""
        return (self.folder / "powered-off").exists()

    def start(self) -> None:
        """Boot."""
        self.sshd.start()

    def boot_after(self, seconds: float) -> None:
        """Boot later; until then nothing answers."""

        def boot() -> None:
            self._over.wait(seconds)
            with self._booting:
                if self._over.is_set():
                    return
                self.sshd.start()
            self._over.wait()  # sshd ends with the thread that started it

        threading.Thread(target=boot, daemon=True).start()

    def processes(self) -> list[psutil.Process]:
        """Return every process that runs on it."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == str(self.folder):
                    found.append(process)
        return found

    def trainers(self) -> list[psutil.Process]:
        """Return the trainings that run on it."""
        words = ("crane_x7_vla_rl.training.cli", "crane-x7-vla-rl", TRAINER.name)
        return [p for p in self.processes() if any(w in " ".join(_words(p)) for w in words)]

    def kill(self) -> None:
        """Switch it off: nothing of it runs any more."""
        self._over.set()
        with self._booting:
            self.sshd.kill()
        for _ in range(100):  # a process that forks while it is looked for is found next time
            left = self.processes()
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)
            if not left:
                return
            time.sleep(0.05)

    def remove_disk(self) -> None:
        """Delete its disk."""
        shutil.rmtree(self.disk, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            for log in self.run_folder.glob("sessions/*/*log"):
                print(f"--- {log}\n{log.read_text(errors='replace')[-3000:]}")
        self.kill()


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
