"""What a container does and how it ends: roles, exit codes, signals, health, open ports."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from container_robot import sim_robot, watch
from containers import ROOT, Container, Network, Workshop, wait_for
from ssh_login import Login

from crane_x7_remote.errors import ExitCode

pytestmark = pytest.mark.container

STOP_LIMIT_S = 10
LIGHT = ("--arm", "kinematic")
"""A robot that starts at once, where it is enough that it obeys."""
DRIVE = {
    "ROSBRIDGE_HOST": "127.0.0.1",
    "VLA_POLICY": "color-servo",
    "VLA_TASK_INSTRUCTION": "pick up the red cube",
}


def test_role_infer_lifts_the_cube_and_podman_stop_leaves_the_arm_at_rest(
    workshop: Workshop, image: str, network: Network, tmp_path: Path
) -> None:
    with (
        sim_robot(network, tmp_path),
        Container(workshop, image, network, environ=DRIVE) as container,
    ):
        watch(network, "lifted red", 90)
        before_s = time.monotonic()
        container.stop(STOP_LIMIT_S)
        assert time.monotonic() - before_s < STOP_LIMIT_S
        assert container.exit_code == ExitCode.OK
        watch(network, "rests", 20)


def test_exit_code_of_the_role_is_the_containers(
    workshop: Workshop, image: str, network: Network
) -> None:
    with Container(workshop, image, network, ("sh", "-c", "exit 41")) as container:
        assert container.wait() == 41


def test_unreachable_robot_ends_the_container_with_its_own_code(
    workshop: Workshop, image: str, network: Network
) -> None:
    environ = DRIVE | {"PEER_WAIT_TIMEOUT": "2"}
    with Container(workshop, image, network, ("infer",), environ) as container:
        assert container.wait() == ExitCode.PEER_UNREACHABLE
        assert "127.0.0.1" in container.logs()


def test_all_wrong_settings_are_named_at_once(
    workshop: Workshop, image: str, network: Network
) -> None:
    wrong = {"ROSBRIDGE_PORT": "none", "SSH_PORT": "99999", "VLA_INFERENCE_RTAE": "5"}
    with Container(workshop, image, network, environ=wrong) as container:
        assert container.wait() == ExitCode.SETTINGS
        for name in (*wrong, "VLA_INFERENCE_RATE"):
            assert name in container.logs()


def test_role_runs_as_vla_in_the_workspace_and_sees_its_settings(
    workshop: Workshop, image: str, network: Network
) -> None:
    command = ("sh", "-c", 'id -un; pwd; echo "$HOME $WANDB_PROJECT"; touch "$WANDB_DIR/mine"')
    environ = {"WANDB_PROJECT": "crane x7"}
    with Container(workshop, image, network, command, environ) as container:
        assert container.wait() == 0
        assert {"vla", "/workspace", "/home/vla crane x7"} <= set(container.logs().splitlines())


@pytest.mark.parametrize("command", [("sshd",), ("sleep", "infinity")])
def test_sigterm_ends_the_container_in_time_without_a_kill(
    workshop: Workshop, image: str, network: Network, tmp_path: Path, command: tuple[str, ...]
) -> None:
    login = Login.make(network, tmp_path)
    environ = {"SSH_PUBLIC_KEY": login.public_key}
    with Container(workshop, image, network, command, environ) as container:
        login.wait()
        before_s = time.monotonic()
        container.stop(STOP_LIMIT_S)
        assert time.monotonic() - before_s < STOP_LIMIT_S
        assert container.exit_code in (0, 128 + 15)


def test_a_role_that_ignores_sigterm_is_ended_in_time(
    workshop: Workshop, image: str, network: Network
) -> None:
    command = ("sh", "-c", 'trap "" TERM; echo deaf; while :; do sleep 0.2; done')
    with Container(workshop, image, network, command) as container:
        wait_for(lambda: "deaf" in container.logs(), "the role starts")
        before_s = time.monotonic()
        container.stop(STOP_LIMIT_S + 5)
        assert time.monotonic() - before_s < STOP_LIMIT_S


def test_health_follows_sshd(
    workshop: Workshop, image: str, network: Network, tmp_path: Path
) -> None:
    login = Login.make(network, tmp_path)
    environ = {"SSH_PUBLIC_KEY": login.public_key}
    with Container(workshop, image, network, ("sshd",), environ) as container:
        login.wait()
        wait_for(container.is_healthy, "the container is healthy")
        status = container.exec("crane-x7-remote", "status").stdout
        assert "sshd" in status


def test_only_sshd_listens_beyond_localhost(
    workshop: Workshop, image: str, network: Network, tmp_path: Path
) -> None:
    login = Login.make(network, tmp_path)
    environ = DRIVE | {"SSH_PUBLIC_KEY": login.public_key}
    with (
        sim_robot(network, tmp_path, *LIGHT),
        Container(workshop, image, network, ("infer",), environ) as container,
    ):
        login.wait()
        watch(network, "obeys", 60)
        wait_for(container.is_healthy, "the container is healthy")
        public = {
            (port, program)
            for address, port, program in network.listeners()
            if not address.startswith("127.") and address != "::1"
        }
    assert public == {(22, "sshd")}


def test_no_process_of_an_ended_session_is_left_as_a_zombie(
    workshop: Workshop, image: str, network: Network, tmp_path: Path
) -> None:
    login = Login.make(network, tmp_path)
    environ = {"SSH_PUBLIC_KEY": login.public_key}
    with Container(workshop, image, network, ("sshd",), environ) as container:
        login.wait()
        for _ in range(3):
            assert login.run("(sleep 0.05 &) ; true").returncode == 0

        def zombies() -> str:
            return container.exec("ps", "-eo", "stat=,comm=").stdout

        wait_for(lambda: "Z" not in zombies(), "zombies are reaped")


def test_compose_profile_local_drives_its_simulated_robot(
    workshop: Workshop, image: str, network: Network, tmp_path: Path
) -> None:
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    loop = services["local-infer"]
    assert loop["network_mode"] == "service:sim-robot"
    assert services["sim-robot"]["entrypoint"][-2:] == ["sim-robot", "--guard"]
    environ = {name: _default(value) for name, value in loop["environment"].items()}
    # The image without torch has no simulator; the robot of this checkout takes its place.
    with (
        sim_robot(network, tmp_path, *LIGHT, "--guard"),
        Container(workshop, image, network, loop["command"], environ),
    ):
        watch(network, "obeys", 60)


def _default(value: str) -> str:
    """Return what compose puts for ${NAME:-default} where NAME is not set."""
    return value.partition(":-")[2].rstrip("}") if value.startswith("${") else value
