"""The container on a real tailnet: headscale, its relay, and sites with no route to each other."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from container_robot import sim_robot, watch
from container_world import World
from containers import Container, MissingToolsError, Network, Workshop, wait_for
from ssh_login import Login
from tailnet_rig import RELAY_WITHOUT_TLS, Node, NodeConfig, Process

from crane_x7_remote.errors import ExitCode

pytestmark = pytest.mark.container

NAME, ROBOT = "crane-x7-inference", "crane-x7-local"
CUT_S = 20
DRIVE = {
    "ROSBRIDGE_HOST": ROBOT,
    "VLA_POLICY": "color-servo",
    "VLA_TASK_INSTRUCTION": "pick up the red cube",
}


@dataclass(frozen=True)
class Scene:
    """A rented machine's site and the robot's, with the robot's node on the tailnet."""

    workshop: Workshop
    image: str
    world: World
    rented: Network
    room: Network
    robot: Node
    robot_config: NodeConfig
    login: Login
    """As from the robot's room, by name over the tailnet."""

    def environ(self, key: str, **more: str) -> dict[str, str]:
        """What a user sets to join, with `key`."""
        return {
            "TS_AUTHKEY": key,
            "TS_HOSTNAME": NAME,
            "TS_EXTRA_ARGS": f"--login-server={self.world.control.url}",
            "SSH_PUBLIC_KEY": self.login.public_key,
            **RELAY_WITHOUT_TLS,
            **more,
        }

    def container(
        self, environ: Mapping[str, str], *command: str, options: tuple[str, ...] = ()
    ) -> Container:
        return Container(self.workshop, self.image, self.rented, command, environ, options)

    def node(self) -> dict[str, object] | None:
        """What the control server knows of the container."""
        return self.world.control.node(NAME)


@pytest.fixture
def scene(workshop: Workshop, image: str, tmp_path: Path) -> Iterator[Scene]:
    try:
        tools = workshop.tools
    except MissingToolsError as error:
        # The Go proxy could not be reached, and podman's containers need the real tailscaled.
        pytest.skip(str(error))
    with World(tools, tmp_path) as world:
        rented, room = world.site(), world.site()
        config = NodeConfig(inside=tuple(room.inside()))
        with Node(tools, tmp_path, ROBOT, config) as robot:
            robot.up(world.control.url, world.control.key())
            proxy = f"ProxyCommand={tools / 'tailscale'} --socket {robot.socket} nc %h %p"
            login = Login.make(room, tmp_path).on(host=NAME, options=(proxy,))
            yield Scene(workshop, image, world, rented, room, robot, config, login)


@contextmanager
def _driving(scene: Scene, folder: Path, *flags: str) -> Iterator[Container]:
    """The container's loop drives `sim-robot` with `flags` of the other site over the tailnet."""
    environ = scene.environ(scene.world.control.key(ephemeral=True), **DRIVE)
    with sim_robot(scene.room, folder, *flags), scene.container(environ) as container:
        watch(scene.room, "obeys", 60)
        yield container


def test_login_by_name_from_the_robots_side(scene: Scene) -> None:
    with scene.container(scene.environ(scene.world.control.key()), "sshd"):
        scene.login.wait(60)
        assert scene.login.run("whoami").stdout == "vla\n"


def test_loop_lifts_the_cube_through_the_tailnet_and_a_cut_heals(
    scene: Scene, tmp_path: Path
) -> None:
    with _driving(scene, tmp_path) as container:
        watch(scene.room, "lifted red", 90)
        scene.world.cut(scene.rented)
        watch(scene.room, "rests", 20)
        time.sleep(CUT_S)
        scene.world.mend()
        watch(scene.room, "obeys again", 90)
        assert container.is_running


def test_stop_while_the_robot_holds_logs_an_ephemeral_node_out_in_time(
    scene: Scene, tmp_path: Path
) -> None:
    with _driving(scene, tmp_path) as container:
        watch(scene.room, "lifted red", 90)
        assert scene.node() is not None
        before_s = time.monotonic()
        container.stop(10)
        assert time.monotonic() - before_s < 10
        assert container.exit_code == ExitCode.OK
        watch(scene.room, "rests", 20)
        wait_for(lambda: scene.node() is None, "the control server forgets the node")


def test_key_is_nowhere_that_others_look(scene: Scene) -> None:
    key = scene.world.control.key()
    secret = key[-32:]  # the end alone: the key itself may hold dashes
    script = 'cat /proc/self/environ; while [ ! -e "$HOME/go" ]; do sleep 0.2; done'
    with scene.container(scene.environ(key), "sh", "-c", script) as container:
        scene.login.wait(60)
        arguments = container.exec("ps", "-ww", "-eo", "args").stdout
        session = scene.login.run("cat /proc/self/environ").stdout
        for text in (arguments, session, container.logs()):
            assert "tailscaled" in text or "PATH=" in text
            assert secret not in text


def test_node_stays_the_same_machine_over_a_restart_with_its_volume(
    scene: Scene, tmp_path: Path
) -> None:
    volume = _state_volume(tmp_path)
    key = scene.world.control.key(reusable=False)
    for _ in range(2):
        with scene.container(scene.environ(key), "sshd", options=volume) as container:
            scene.login.wait(60)
            container.stop()
    assert [node["given_name"] for node in scene.world.control.nodes()].count(NAME) == 1


def test_killed_tailscaled_comes_back_under_its_name(scene: Scene, tmp_path: Path) -> None:
    volume = _state_volume(tmp_path)
    environ = scene.environ(scene.world.control.key())
    with scene.container(environ, "sshd", options=volume) as container:
        scene.login.wait(60)
        before = container.exec("pgrep", "-x", "tailscaled").stdout.split()
        container.exec("kill", "-9", *before)

        def is_new() -> bool:
            after = container.exec("pgrep", "-x", "tailscaled", check=False).stdout.split()
            return bool(after) and after != before

        wait_for(is_new, "a new tailscaled")
        scene.login.wait(60)


def test_only_sshd_listens_beyond_localhost_with_the_tailnet_up(
    scene: Scene, tmp_path: Path
) -> None:
    with _driving(scene, tmp_path, "--arm", "kinematic"):
        public = {
            (port, program)
            for address, port, program in scene.rented.listeners(udp=False)
            if not address.startswith("127.") and address != "::1"
        }
    assert public == {(22, "sshd")}


@dataclass(frozen=True)
class Mishap:
    """What goes wrong on the way to the robot, and how the container must end."""

    code: ExitCode
    words: tuple[str, ...]
    """In the one line of the log that says why."""
    environ: Mapping[str, str] = field(default_factory=dict)
    key: str = "good"
    options: tuple[str, ...] = ()


PROGRAM = "crane-x7-remote "
NOBODY = "10.79.255.9"
MISHAPS = {
    "a wrong key": Mishap(ExitCode.TAILNET_KEY, ("TS_AUTHKEY",), key="wrong"),
    "an expired key": Mishap(ExitCode.TAILNET_KEY_EXPIRED, ("expired",), key="expired"),
    "a control server that is not there": Mishap(
        ExitCode.CONTROL_UNREACHABLE,
        ("TS_LOGIN_TIMEOUT", "--login-server"),
        {"TS_EXTRA_ARGS": f"--login-server=http://{NOBODY}:8080", "TS_LOGIN_TIMEOUT": "4"},
    ),
    "a full state volume": Mishap(
        ExitCode.STATE,
        ("TS_STATE_DIR", "No space left"),
        options=("--tmpfs", "/var/lib/tailscale:size=8k"),
    ),
    "no robot of that name": Mishap(
        ExitCode.PEER_UNKNOWN, ("crane-x7-lost", ROBOT), {"ROSBRIDGE_HOST": "crane-x7-lost"}
    ),
    "a robot that only starts like it, and is offline": Mishap(
        ExitCode.PEER_UNKNOWN, ("crane-x7-old (offline",), {"ROSBRIDGE_HOST": "crane-x7-ol"}
    ),
    "a robot that is offline": Mishap(
        ExitCode.PEER_OFFLINE, ("crane-x7-old",), {"ROSBRIDGE_HOST": "crane-x7-old"}
    ),
    "a robot without rosbridge": Mishap(ExitCode.PEER_UNREACHABLE, (ROBOT, "9090")),
}


@pytest.mark.parametrize("what", MISHAPS)
def test_mishap_ends_in_one_clear_message_and_its_own_code(
    scene: Scene, tmp_path: Path, what: str
) -> None:
    mishap = MISHAPS[what]
    good = scene.world.control.key()
    key = {
        "good": good,
        "wrong": f"{good[:-8]}{good[-8:].swapcase()}",
        "expired": scene.world.control.expired_key(),
    }[mishap.key]
    if "crane-x7-ol" in mishap.environ.get("ROSBRIDGE_HOST", ""):
        with Node(scene.workshop.tools, tmp_path, "crane-x7-old", scene.robot_config) as old:
            old.up(scene.world.control.url, good)
        scene.robot.wait_online("crane-x7-old", online=False)
    environ = scene.environ(key, **(DRIVE | {"PEER_WAIT_TIMEOUT": "3"} | dict(mishap.environ)))
    with scene.container(environ, "infer", options=mishap.options) as container:
        assert container.wait(90) == mishap.code
        said = [line for line in container.logs().splitlines() if line.startswith(PROGRAM)]
    assert len(said) == 1
    for word in mishap.words:
        assert word in said[0]
    assert key not in said[0]


def test_loop_drives_through_an_ssh_tunnel_that_the_robots_side_opens(
    scene: Scene, tmp_path: Path
) -> None:
    environ = DRIVE | {"SSH_PUBLIC_KEY": scene.login.public_key, "ROSBRIDGE_HOST": "localhost"}
    address = scene.world.address(scene.rented)
    tunnel = (
        *(sys.executable, "-m", "crane_x7_remote", "tunnel", "remote", f"vla@{address}"),
        *("--identity", str(scene.login.key), "--known-hosts", str(scene.login.known_hosts)),
    )
    with (
        sim_robot(scene.room, tmp_path),
        scene.container(environ) as container,
        scene.world.open_port_22_of(scene.rented),
    ):
        direct = scene.login.on(host=address, options=())
        direct.wait()
        process = Process(scene.room.inside(*tunnel), tmp_path / "tunnel.log")
        try:
            watch(scene.room, "lifted red", 90)
            assert container.is_running
        finally:
            code = process.stop()
        assert code == ExitCode.OK, process.tail


def _state_volume(folder: Path) -> tuple[str, str]:
    (folder / "state").mkdir()
    return ("--volume", f"{folder / 'state'}:/var/lib/tailscale")
