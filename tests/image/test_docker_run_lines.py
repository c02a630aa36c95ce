"""Every `docker run` line of docs/docker-run.md, run as printed.

`docker` is podman here, in a network of the test's own; only what a reader replaces is replaced:
`<username>/…` by the image, `/path/to` and the keys by test keys. podman ignores `--gpus`. For
the tailnet's lines `docker` adds what a control server of one's own needs, TS_EXTRA_ARGS.

The image is the one without torch. Where a line has to get as far as a model, `docker` adds the
packages of the tests' environment (rig container_packages) and a cache of the Hub that holds
`openvla/openvla-7b`: either what describes that base model, or, as the page says that the name
stands for the reader's fine-tuned model, a small one of that layout with this arm's statistics.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import container_packages
import pytest
from container_robot import sim_robot, watch
from container_world import World
from containers import ROOT, MissingToolsError, Network, Workshop, wait_for
from ssh_login import Login
from tailnet_rig import RELAY_WITHOUT_TLS, Node, NodeConfig

from crane_x7_remote.errors import ExitCode

pytestmark = pytest.mark.container

VLA = 1000
"""The user in the image."""
PAGE = (ROOT / "docs" / "docker-run.md").read_text()
REFUSAL = re.compile(r"statistics .*bridge_orig.*fine-tune")
"""The base model has never seen this arm; no weights are needed to say so."""
PROGRESS = re.compile(r"loop [0-9a-f]{8} starts at [\d.]+ Hz\n.*: driving \(", re.DOTALL)
"""What the page says that one should see."""
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
        with self.running(line) as process:
            output, _ = process.communicate(timeout=timeout_s)
        return process.returncode, output

    @contextmanager
    def running(self, line: str) -> Iterator[subprocess.Popen[str]]:
        """Run `line` in a new bash, whose process group takes signals as a terminal's."""
        line = re.sub(r"<username>/\w+:latest", self.image, line)
        line = line.replace("/path/to", str(self.folder)).replace("tskey-auth-xxxxx", self.key)
        environ = self.workshop.environ | {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.folder),
        }
        with subprocess.Popen(
            ["bash", "-c", line],
            cwd=self.folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

    def status(self) -> str:
        """Return what `docker exec NAME crane-x7-remote status` prints."""
        name = (self.folder / "container").read_text()
        words = ("podman", "exec", name, "crane-x7-remote", "status")
        return self.workshop.run(*self.network.inside(*words), check=False).stdout

    def always(self, *flags: str) -> None:
        """Add `flags` to every `docker run` from now on."""
        with (self.folder / "flags").open("a") as file:
            file.writelines(f"{flag}\n" for flag in flags)


@contextmanager
def _desk(
    workshop: Workshop, image: str, network: Network, folder: Path, **environ: str
) -> Iterator[Desk]:
    """A desk in `network`, whose `docker` sets `environ` in every container."""
    for name in ("bin", ".ssh", "outputs", "models"):
        (folder / name).mkdir()
    (folder / "flags").touch()
    login = Login.make(network, folder / ".ssh")
    (folder / ".ssh" / "id_rsa.pub").write_text(login.public_key + "\n")
    made = folder / "container"
    settings = [f"--env={name}={value}" for name, value in environ.items()]
    podman = network.inside("podman", "run", "--cidfile", str(made), *settings)
    docker = folder / "bin" / "docker"
    docker.write_text(
        '#!/bin/bash\n[ "$1" = run ] && shift\n'
        f"mapfile -t flags <{shlex.quote(str(folder / 'flags'))}\n"
        f'exec {shlex.join(podman)} "${{flags[@]}}" "$@"\n'
    )
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
def packages(workshop: Workshop, image: str) -> tuple[str, ...]:
    return container_packages.mounted(workshop, image)


@pytest.fixture
def tailnet(workshop: Workshop, image: str, tmp_path: Path) -> Iterator[Desk]:
    """A desk, and the robot's node on the same tailnet in a separate network."""
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


def _base_model(folder: Path) -> Path:
    """Write what describes a model that knows another robot alone; its weights are never read."""
    folder.mkdir(parents=True)
    action = {"q01": [0.0] * 7, "q99": [1.0] * 7}
    config = {"norm_stats": {"bridge_orig": {"action": action}}}
    for name, content in (("config.json", json.dumps(config)), ("tokenizer.json", "{}")):
        (folder / name).write_text(content)
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def _own_model(folder: Path) -> Path:
    """Build a small model of OpenVLA's layout, with random weights and this arm's statistics."""
    rig = pytest.importorskip("training_rig", reason="needs the train extra")
    from crane_x7_vla_rl.policies.openvla.builder import build

    return build(folder, rig.SIZES)


def _in_the_hubs_cache(desk: Desk, make: Callable[[Path], Path]) -> None:
    """Give every container a cache that holds what `make` writes, as openvla/openvla-7b."""
    home = desk.folder / "huggingface"
    model = home / "hub" / "models--openvla--openvla-7b"
    commit = "31f090d05236101ebfc381b61c674dd4746d4ce0"
    make(model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    for path in (home, *home.rglob("*")):
        os.chown(path, VLA, VLA)
    # The flag of the page's sentence "keep the cache". No test reaches the Hub.
    desk.always(f"--volume={home}:/home/vla/.cache/huggingface", "--env=HF_HUB_OFFLINE=1")


def _drives_until_ctrl_c(desk: Desk, line: str, robot: Network) -> str:
    """Run `line` until the arm in `robot` obeys its loop, press Ctrl-C; return what was shown."""
    with desk.running(line) as process:
        try:
            watch(robot, "obeys", 90)
            wait_for(lambda: "loop driving" in desk.status(), "status shows the loop's own word")
        finally:
            os.killpg(process.pid, signal.SIGINT)
            output, _ = process.communicate(timeout=30)
            print(output)
    watch(robot, "rests", 20)
    assert process.returncode == ExitCode.OK
    assert PROGRESS.search(output), output
    return output


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
    assert "needs the packages torch" in output, "this image is the one without a model's packages"


def test_ssh_tunnel_line_refuses_the_base_model_for_its_statistics(
    desk: Desk, packages: tuple[str, ...]
) -> None:
    desk.always(*packages)
    _in_the_hubs_cache(desk, _base_model)
    code, output = desk.run(_line("--network host"))
    assert code == ExitCode.POLICY_LOAD, output
    assert REFUSAL.search(output), output
    assert "packages" not in output


def test_ssh_tunnel_line_drives_the_robot_with_a_model_of_that_layout(
    desk: Desk, packages: tuple[str, ...]
) -> None:
    desk.always(*packages)
    _in_the_hubs_cache(desk, _own_model)
    with sim_robot(desk.network, desk.folder, "--arm", "kinematic"):
        _drives_until_ctrl_c(desk, _line("--network host"), desk.network)


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


def test_inference_line_joins_the_tailnet_and_refuses_the_base_model_for_its_statistics(
    tailnet: Desk, packages: tuple[str, ...]
) -> None:
    desk = tailnet
    desk.always(*packages)
    _in_the_hubs_cache(desk, _base_model)
    code, output = desk.run(_line("TS_AUTHKEY", "VLA_DEVICE"))
    assert "crane-x7-inference.tailnet.test" in output
    assert code == ExitCode.POLICY_LOAD, output
    assert "openvla/openvla-7b" in output
    assert REFUSAL.search(output), output
    assert "VLA_DEVICE" in output, "podman has no GPU for --gpus all"
    assert desk.key[-32:] not in output


def test_inference_line_with_a_model_of_ones_own_drives_the_robot_over_the_tailnet(
    tailnet: Desk, packages: tuple[str, ...]
) -> None:
    desk = tailnet
    desk.always(*packages)
    _own_model(desk.folder / "models" / "crane_x7_openvla")
    output = _drives_until_ctrl_c(desk, _line("TS_AUTHKEY", "/path/to/models"), desk.login.network)
    assert "crane-x7-inference.tailnet.test" in output
    assert "connected to rosbridge at crane-x7-local:9090" in output
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
