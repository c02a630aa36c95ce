"""Every `docker run` line of docs/docker-run.md, run as printed.

`docker` is podman here, in a network of the test's own; only what a reader replaces is replaced:
`<username>/…` by the image, `/path/to` and the keys by some of ours. podman ignores `--gpus`. For
the tailnet's lines `docker` adds what a control server of one's own needs, TS_EXTRA_ARGS.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from container_robot import sim_robot
from container_world import World
from containers import ROOT, MissingToolsError, Network, Workshop
from ssh_login import Login
from tailnet_rig import RELAY_WITHOUT_TLS, Node, NodeConfig

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
    key: str = ""
    """Of the tailnet."""

    def run(self, line: str, timeout_s: float = 90.0) -> tuple[int, str]:
        """Run `line` in bash; return exit code and output once it has ended, with -d at once."""
        line = re.sub(r"<username>/\w+:latest", self.image, line)
        line = line.replace("/path/to", str(self.folder)).replace("tskey-auth-xxxxx", self.key)
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


@contextmanager
def _desk(
    workshop: Workshop, image: str, network: Network, folder: Path, **environ: str
) -> Iterator[Desk]:
    """A desk in `network`, whose `docker` sets `environ` in every container."""
    for name in ("bin", ".ssh", "outputs", "models"):
        (folder / name).mkdir()
    login = Login.make(network, folder / ".ssh")
    (folder / ".ssh" / "id_rsa.pub").write_text(login.public_key + "\n")
    made = folder / "container"
    settings = [f"--env={name}={value}" for name, value in environ.items()]
    podman = network.inside("podman", "run", "--cidfile", str(made), *settings)
    docker = folder / "bin" / "docker"
    docker.write_text(f'#!/bin/sh\n[ "$1" = run ] && shift\nexec {shlex.join(podman)} "$@"\n')
    docker.chmod(0o755)
    try:
        yield Desk(workshop, image, network, folder, login)
    finally:
        if made.exists():
            remove = ("podman", "rm", "--force", "--time", "1", "--volumes", made.read_text())
            workshop.run(*network.inside(*remove))


@pytest.fixture
def desk(workshop: Workshop, image: str, network: Network, tmp_path: Path) -> Iterator[Desk]:
    with _desk(workshop, image, network, tmp_path) as desk:
        yield desk


@pytest.fixture
def tailnet(workshop: Workshop, image: str, tmp_path: Path) -> Iterator[Desk]:
    """A desk, and the robot's node on the same tailnet in a network of its own."""
    try:
        tools = workshop.tools
    except MissingToolsError as error:
        # The Go proxy could not be reached, and podman's containers need the real tailscaled.
        pytest.skip(str(error))
    with World(tools, tmp_path) as world:
        server = f"--login-server={world.control.url}"
        there, room = world.site(), world.site()
        config = NodeConfig(inside=tuple(room.inside()))
        environ = {"TS_EXTRA_ARGS": server, **RELAY_WITHOUT_TLS}
        with (
            Node(tools, tmp_path, "crane-x7-local", config) as robot,
            sim_robot(room, tmp_path, "--arm", "kinematic"),
            _desk(workshop, image, there, tmp_path, **environ) as desk,
        ):
            robot.up(world.control.url, world.control.key())
            proxy = f"ProxyCommand={tools / 'tailscale'} --socket {robot.socket} nc %h %p"
            login = desk.login.on(network=room, options=(proxy,))
            yield replace(desk, key=world.control.key(ephemeral=True), login=login)


def _base_model(folder: Path) -> None:
    """Write what describes a model that knows another robot alone; its weights are never read."""
    folder.mkdir()
    action = {"q01": [0.0] * 7, "q99": [1.0] * 7}
    config = {"norm_stats": {"bridge_orig": {"action": action}}}
    for name, content in (("config.json", json.dumps(config)), ("tokenizer.json", "{}")):
        (folder / name).write_text(content)
    (folder / "model.safetensors").write_bytes(b"")


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
    options = ("--env", "WANDB_API_KEY=your-wandb-api-key", *options)
    alone = desk.workshop.run("podman", "run", *options, image, *words, check=False)
    assert code == alone.returncode == ExitCode.USAGE, output
    assert "missing packages: torch" in output, "this image is the one without what training needs"
    assert "--backend gpu: torch sees no CUDA GPU" in output, "podman has no GPU for --gpus all"
    last = alone.stderr.strip().splitlines()[-1]
    assert last in output


@pytest.mark.parametrize("words", [("VLA_DEVICE",), ("/path/to/models",)])
def test_inference_line_joins_the_tailnet_and_ends_with_the_verdict_on_the_model(
    tailnet: Desk, words: tuple[str, ...]
) -> None:
    desk = tailnet
    line = _line("TS_AUTHKEY", *words)
    _base_model(desk.folder / "models" / "crane_x7_openvla")
    code, output = desk.run(line)
    assert "crane-x7-inference.tailnet.test" in output
    assert code == ExitCode.POLICY_LOAD, output
    (model,) = re.findall('VLA_MODEL_PATH="(.*)"', line)
    assert model in output
    assert "needs the packages torch" in output, "this image is the one without a model's packages"
    assert desk.key[-32:] not in output


def test_training_line_opens_ssh_by_name_over_the_tailnet(tailnet: Desk) -> None:
    desk = tailnet
    code, output = desk.run(_line("crane-x7-vla-rl", "TS_AUTHKEY"))
    assert code == 0, output
    there = desk.login.on(host="crane-x7-vla-rl")
    there.wait(60)
    seen = there.run('echo "$WANDB_API_KEY $HF_TOKEN"; date >"$WANDB_DIR/from-the-session"')
    assert seen.stdout.strip() == "your-wandb-api-key hf_xxxxx"
    assert (desk.folder / "outputs" / "from-the-session").read_text()
