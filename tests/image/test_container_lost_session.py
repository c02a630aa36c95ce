"""Sessions of `ssh vla@host` that are cut: a training continues, the arm comes to rest.

The image is the one without torch, with the packages of the tests' environment: see the rig
container_packages. A user's machine goes away as `kill -9` of its ssh: sshd finds a closed
connection, and nobody has said goodbye.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import container_packages
import pytest
from container_robot import sim_robot, watch
from containers import Container, Network, Workshop, wait_for
from ssh_login import Login

from crane_x7_remote.settings import Settings

pytestmark = pytest.mark.container

VLA = 1000
"""The user in the image."""
ROOT_THERE = "/workspace/vla-rl/outputs"
RUN = f"{ROOT_THERE}/lift"
GUARD_WAITS_S = Settings.model_fields["guard_link_timeout"].default
FIRST_UPDATE_S = 120.0
"""It imports torch and simulates, on a machine that is busy otherwise."""


class Terminal:
    """A terminal in which somebody has typed `ssh vla@host`."""

    def __init__(self, login: Login, log: Path, kind: str) -> None:
        """Connect; what the terminal shows is written to `log`. `kind` is its TERM."""
        self._log = log
        with log.open("wb") as sink:
            self._ssh = subprocess.Popen(
                login.command(flags=("-tt",)),
                env=os.environ | {"TERM": kind},
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        self.type("stty rows 24 cols 100")

    @property
    def shown(self) -> str:
        """All that it has shown, colours and movements of the cursor included."""
        return self._log.read_text(errors="replace")

    def type(self, line: str, end: str = "\n") -> None:
        """Type a line, or keys without Enter with "" for `end`."""
        assert self._ssh.stdin is not None
        self._ssh.stdin.write((line + end).encode())
        self._ssh.stdin.flush()

    def wait_for(self, text: str, timeout_s: float = 20.0) -> None:
        wait_for(lambda: text in self.shown, f"{text!r} is shown", timeout_s)

    def cut(self) -> None:
        """The user's machine goes away."""
        self._ssh.send_signal(signal.SIGKILL)
        self._ssh.communicate(timeout=10)


@contextmanager
def _terminal(login: Login, log: Path, kind: str = "xterm-256color") -> Iterator[Terminal]:
    terminal = Terminal(login, log, kind)
    try:
        yield terminal
    finally:
        terminal.cut()


def _counts(path: Path) -> Callable[[], int]:
    """Return what counts the lines of a file that may not be there yet."""
    return lambda: len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.timeout(400, func_only=True)
def test_a_training_survives_its_session_and_another_one_follows_it(
    workshop: Workshop, image: str, network: Network, tmp_path: Path
) -> None:
    packages = container_packages.mounted(workshop, image)
    rig = pytest.importorskip("rl_rig", reason="needs the train extra")
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    os.chown(outputs, VLA, VLA)
    volumes = (
        f"--volume={rig.base()}:/workspace/models/base:ro",
        f"--volume={outputs}:{ROOT_THERE}",
    )
    flags = rig.flags(Path(RUN), "--num-updates", "99999", "--save-every", "99999")
    flags[flags.index(str(rig.base()))] = "/workspace/models/base"
    login, run = Login.make(network, tmp_path), outputs / "lift"
    log, updates = run / "train.log", _counts(run / "metrics.jsonl")
    environ = {"SSH_PUBLIC_KEY": login.public_key, "OMP_NUM_THREADS": "1"}
    with Container(workshop, image, network, ("sshd",), environ, (*packages, *volumes)):
        login.wait()
        with _terminal(login, tmp_path / "first") as first:
            first.type(f"crane-x7-vla-rl train {shlex.join(flags)}")
            try:
                wait_for(updates, "the first update", FIRST_UPDATE_S)
            except AssertionError as error:
                raise AssertionError(f"{error}; shown:\n{first.shown[-3000:]}") from None
            assert f"--follow {RUN}" in first.shown
            first.cut()
        wait_for(lambda: "SIGHUP: saved" in log.read_text(), "the training saves", 60)
        saved = int((run / "last").readlink().name.rpartition("_")[2])
        with _terminal(login, tmp_path / "second") as second:
            second.type(f"crane-x7-vla-rl train --follow {RUN}")
            second.wait_for("SIGHUP: saved")
            second.wait_for(f"update:{saved + 1} ", 60)
            number = re.findall(r"\(process (\d+)\)", log.read_text())[0]
            login.run(f"kill -TERM {number}")
            second.wait_for("no training is running in this folder", 60)
        assert "stopped after" in second.shown
        assert (run / "last").readlink().name == f"checkpoint_{updates()}"


def test_infer_in_a_session_that_is_cut_brings_the_arm_to_rest_and_the_guard_stays_open(
    workshop: Workshop, image: str, network: Network, tmp_path: Path
) -> None:
    login = Login.make(network, tmp_path)
    environ = {"SSH_PUBLIC_KEY": login.public_key, "ROSBRIDGE_HOST": "127.0.0.1"}
    environ |= {"ROSBRIDGE_PORT": "9091", "VLA_POLICY": "color-servo"}
    with (
        sim_robot(network, tmp_path, "--arm", "kinematic", "--guard"),
        Container(workshop, image, network, ("sshd",), environ),
    ):
        login.wait()
        with _terminal(login, tmp_path / "terminal") as terminal:
            terminal.type("crane-x7-remote infer --vla-task-instruction 'pick up the red cube'")
            watch(network, "obeys", 60)
            terminal.cut()
        wait_for(lambda: login.run("pgrep -f [-]-vla-task").returncode == 1, "the loop ends")
        watch(network, "rests", 20)
        time.sleep(GUARD_WAITS_S + 1)
        said = (tmp_path / "sim-robot.log").read_text()
    assert "link was lost" not in said, "who comes back has to type resume"


def test_tmux_keeps_a_terminal_that_is_cut_and_one_that_is_left(
    workshop: Workshop, image: str, network: Network, tmp_path: Path
) -> None:
    login = Login.make(network, tmp_path)
    environ = {"SSH_PUBLIC_KEY": login.public_key}
    with Container(workshop, image, network, ("sshd",), environ):
        login.wait()
        with _terminal(login, tmp_path / "first") as first:
            first.type("tmux new -s train")
            first.wait_for("[train]")
            first.type("echo 赤いキューブ $((40 + 2))")
            first.wait_for("赤いキューブ 42")
            first.cut()
        with _terminal(login, tmp_path / "second", "xterm-kitty") as second:
            second.type("tmux attach -t train")
            second.wait_for("missing or unsuitable terminal")  # as docs/troubleshooting.md has it
            second.type("TERM=xterm-256color tmux attach -t train")
            second.wait_for("赤いキューブ 42")
            second.type("\x02d", end="")  # Ctrl-B, then D
            second.wait_for("[detached (from session train)]")
        assert login.run("tmux ls").stdout.startswith("train: 1 windows")
