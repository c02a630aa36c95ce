"""Every `docker run` line of docs/docker-run.md, run as printed.

`docker` is podman here, in a network of the test's own; only what a reader replaces is replaced:
`<username>/…` by the image, `/path/to` and the keys by some of ours. podman ignores `--gpus`.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from containers import ROOT, Network, Workshop
from ssh_login import Login

from crane_x7_remote.errors import ExitCode

pytestmark = pytest.mark.container

PAGE = (ROOT / "docs" / "docker-run.md").read_text()
LINES = re.findall(r"^docker run (?:.*\\\n)*.*$", PAGE, re.MULTILINE)


def _line(*words: str) -> str:
    """Return the one command of the page that holds all `words`."""
    (found,) = (line for line in LINES if all(word in line for word in words))
    return str(found)


@dataclass(frozen=True)
class Desk:
    """A user's machine: a home with an SSH key, a working folder with outputs/, and `docker`."""

    workshop: Workshop
    image: str
    network: Network
    folder: Path
    login: Login

    def run(self, line: str, timeout_s: float = 60.0) -> tuple[int, str]:
        """Run `line` in bash; return exit code and output once it has ended, with -d at once."""
        line = re.sub(r"<username>/\w+:latest", self.image, line)
        line = line.replace("/path/to", str(self.folder))
        environ = self.workshop.environ | {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.folder),
        }
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return done.returncode, done.stdout


@pytest.fixture
def desk(workshop: Workshop, image: str, network: Network, tmp_path: Path) -> Iterator[Desk]:
    for name in ("bin", ".ssh", "outputs", "models"):
        (tmp_path / name).mkdir()
    login = Login.make(network, tmp_path / ".ssh")
    (tmp_path / ".ssh" / "id_rsa.pub").write_text(login.public_key + "\n")
    podman = network.inside("podman")
    docker = tmp_path / "bin" / "docker"
    docker.write_text(
        f'#!/bin/sh\n[ "$1" = run ] && shift\nexec {shlex.join(podman)} run'
        f' --cidfile {shlex.quote(str(tmp_path / "container"))} "$@"\n'
    )
    docker.chmod(0o755)
    yield Desk(workshop, image, network, tmp_path, login)
    made = tmp_path / "container"
    if made.exists():
        workshop.run(
            *network.inside("podman", "rm", "--force", "--time", "1", "--volumes"), made.read_text()
        )


def test_page_has_the_lines_that_the_project_promised() -> None:
    assert len(LINES) == 6
    assert sum("TS_AUTHKEY" in line for line in LINES) == 3


def test_port_forward_line_opens_ssh_and_shares_its_outputs(desk: Desk) -> None:
    code, output = desk.run(_line("-p 2222:22"))
    assert code == 0, output
    there = desk.login.on(port=2222)
    there.wait()
    seen = there.run('echo "$WANDB_API_KEY"; date >"$WANDB_DIR/from-the-session"').stdout
    assert seen.strip() == "your-wandb-api-key"
    assert (desk.folder / "outputs" / "from-the-session").read_text()


def test_ssh_tunnel_line_reaches_its_role_whose_verdict_is_the_exit_code(desk: Desk) -> None:
    code, output = desk.run(_line("--network host"))
    assert code == ExitCode.POLICY_LOAD, output
    assert "openvla/openvla-7b" in output


def test_direct_command_line_runs_what_it_names(desk: Desk, image: str) -> None:
    line = _line("--pretrained")
    code, output = desk.run(line)
    words = line.replace("\\\n", " ").partition("python ")[2].split()
    options = ("--rm", "--network", "none", "--user", "vla", "--entrypoint", "python")
    alone = desk.workshop.run("podman", "run", *options, image, *words, check=False)
    assert code == alone.returncode, output
    last = alone.stderr.strip().splitlines()[-1]
    assert last in output
