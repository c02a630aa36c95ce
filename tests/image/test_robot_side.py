"""docker/robot: what can be checked without ROS. No ROS image can be had here, so nothing is built:
the launch file runs against stand-ins that only record, the scripts against fake programs."""

from __future__ import annotations

import argparse
import os
import re
import stat
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml
from containers import ROOT

from crane_x7_remote import addresses
from crane_x7_remote.settings import Settings
from crane_x7_remote.sim_robot import command as sim_robot
from crane_x7_vla_rl.robot import ARM_JOINT_NAMES, JOINT_NAMES

HERE = ROOT / "docker" / "robot"
COMPOSE = yaml.safe_load((HERE / "compose.yaml").read_text())["services"]
BEHIND = "9092"
DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}
PACKAGES = [
    line for line in (HERE / "packages.txt").read_text().splitlines() if not line.startswith("#")
]
MAKERS = {"crane_x7_control", "crane_x7_description"}
"""Built from source in the image."""


# --- compose -------------------------------------------------------------------------------------


def test_the_profiles_are_found_from_the_folder_of_the_project() -> None:
    """`docker compose --profile rosbridge up`, as the older document has it."""
    top = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert top["include"] == ["docker/compose.yaml"]
    middle = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    assert middle["include"] == ["robot/compose.yaml"]
    assert not set(middle["services"]) & set(COMPOSE)


@pytest.mark.parametrize("profile", ["rosbridge", "rosbridge-sim"])
def test_each_profile_is_a_robot_behind_the_same_guard(profile: str) -> None:
    robot, guard = (
        name for name, service in sorted(COMPOSE.items(), reverse=True)
        if profile in service["profiles"]
    )  # fmt: skip
    assert guard == "rosbridge-guard"
    assert robot == f"{profile}-robot"
    assert COMPOSE[guard]["environment"]["GUARD_UPSTREAM"] == f"127.0.0.1:{BEHIND}"
    assert {COMPOSE[name]["network_mode"] for name in (robot, guard)} == {"host"}
    assert not any("ports" in COMPOSE[name] for name in (robot, guard))


def test_the_simulated_robot_listens_where_the_guard_looks_for_it() -> None:
    _, _, program, command, *flags = COMPOSE["rosbridge-sim-robot"]["entrypoint"]
    assert (program, command) == ("crane-x7-remote", "sim-robot")
    parser = argparse.ArgumentParser()
    sim_robot.add_arguments(parser)
    args = parser.parse_args(flags)
    assert (args.host, str(args.port)) == ("127.0.0.1", BEHIND)


def test_ros_2_itself_stays_on_this_machine() -> None:
    environment = COMPOSE["rosbridge-robot"]["environment"]
    assert environment["ROS_LOCALHOST_ONLY"] == "1"
    assert environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    assert environment["ROSBRIDGE_PORT_BEHIND_GUARD"] == BEHIND


def test_an_arm_that_lost_its_bus_is_not_started_again_unseen() -> None:
    assert COMPOSE["rosbridge-robot"]["restart"] == "no"
    assert COMPOSE["rosbridge-guard"]["restart"] == "always"


# --- scripts -------------------------------------------------------------------------------------


def _program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def _run(script: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    shell = "sh" if script == "guard.sh" else "bash"
    return subprocess.run(
        [shell, HERE / script],
        env={"PATH": f"{folder}:{os.environ['PATH']}", **environ},
        cwd=folder, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("own", "listens"),
    [
        ("192.0.2.7 ", []),
        ("192.0.2.7 100.64.0.5 fd7a::1 ", [("100.64.0.5", 9090), ("100.64.0.5", 9091)]),
        ("100.63.0.1 100.128.0.1 10.0.0.1 ", []),
    ],
)
def test_the_guard_listens_on_this_machine_and_its_tailnet_alone(
    own: str, listens: list[tuple[str, int]], tmp_path: Path
) -> None:
    _program(tmp_path, "hostname", f"echo '{own}'")
    _program(tmp_path, "crane-x7-remote", 'echo "$1 $GUARD_LISTEN"')
    done = _run("guard.sh", tmp_path)
    assert done.returncode == 0, done.stderr
    command, _, value = done.stdout.strip().partition(" ")
    assert command == "guard"
    local = [("127.0.0.1", 9090), ("127.0.0.1", 9091)]
    assert addresses.listen_addresses(value) == local + listens
    assert all(addresses.is_tailnet(host) for host, _ in listens)


def test_the_guard_listens_where_it_is_told_to(tmp_path: Path) -> None:
    _program(tmp_path, "crane-x7-remote", 'echo "$1 $GUARD_LISTEN"')
    done = _run("guard.sh", tmp_path, GUARD_LISTEN="127.0.0.1:7000")
    assert done.stdout == "guard 127.0.0.1:7000\n"


def test_an_arm_that_is_not_plugged_in_is_named(tmp_path: Path) -> None:
    done = _run("entrypoint.sh", tmp_path, ARM_PORT="/dev/ttyUSB77", ROS_DISTRO="humble")
    assert done.returncode == 1
    assert "no /dev/ttyUSB77; plug in the arm's USB and switch on its power" in done.stderr


@pytest.mark.parametrize(
    ("environ", "checked_out"),
    [
        ({"ROS_DISTRO": "humble"}, ["52fca058c7c46af63bc35fc5f5873dfc4c2fc08d", "44a1292"]),
        ({"ROS_DISTRO": "jazzy"}, ["ros2", "ros2"]),
        ({"ROS_DISTRO": "jazzy", "CRANE_X7_ROS_REF": "0123abc"}, ["0123abc", "ros2"]),
    ],
)
def test_each_distribution_gets_its_commit_of_the_makers_code(
    environ: dict[str, str], checked_out: list[str], tmp_path: Path
) -> None:
    _program(
        tmp_path, "git", 'case "$*" in *checkout*) eval "echo \\$$#" >>asked ;; esac; echo 123'
    )
    done = _run("sources.sh", tmp_path, **environ)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "asked").read_text().split() == checked_out
    assert (tmp_path / "versions.txt").read_text().splitlines() == [
        "crane_x7_ros 123", "crane_x7_description 123",
    ]  # fmt: skip


def test_another_distribution_is_refused(tmp_path: Path) -> None:
    done = _run("sources.sh", tmp_path, ROS_DISTRO="noetic")
    assert done.returncode == 1
    assert "ROS_DISTRO=noetic, expected humble or jazzy" in done.stderr


def test_the_scripts_and_the_dockerfile_pass_their_linters() -> None:
    programs = Path(sys.executable).parent
    scripts = sorted(HERE.glob("*.sh"))
    assert len(scripts) == 3
    calls = [
        [programs / "shellcheck", *scripts],
        [
            programs / "hadolint",
            "--ignore",
            "DL3008",
            HERE / "Dockerfile",
        ],  # as in docker/Dockerfile
    ]
    for call in calls:
        done = subprocess.run(call, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


# --- the launch file -----------------------------------------------------------------------------


class Recorded:
    """A stand-in for any class of `launch`: keeps what it was made of."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


def _launched(monkeypatch: pytest.MonkeyPatch, **given: str) -> list[dict[str, Any]]:
    """Return the keywords of every node that the launch file starts with these arguments."""
    classes = {
        "launch": ["LaunchDescription"],
        "launch.actions": [
            "DeclareLaunchArgument", "EmitEvent", "OpaqueFunction", "RegisterEventHandler",
        ],
        "launch.event_handlers": ["OnProcessExit"],
        "launch.events": ["Shutdown"],
        "launch.substitutions": ["Command"],
        "launch_ros": [],
        "launch_ros.actions": ["Node"],
        "launch_ros.parameter_descriptions": ["ParameterValue"],
        "ament_index_python": [],
        "ament_index_python.packages": [],
    }  # fmt: skip
    for name, members in classes.items():
        module: Any = types.ModuleType(name)
        for member in members:
            setattr(module, member, type(member, (Recorded,), {}))
        monkeypatch.setitem(sys.modules, name, module)
    index: Any = sys.modules["ament_index_python.packages"]
    index.get_package_share_directory = lambda package: f"/share/{package}"
    path = HERE / "crane_x7.launch.py"
    scope: dict[str, Any] = {"__file__": str(path), "__name__": "crane_x7_launch"}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    *declared, setup = scope["generate_launch_description"]().args[0]
    values = {each.args[0]: each.kwargs["default_value"] for each in declared} | given
    context = types.SimpleNamespace(launch_configurations=values)
    nodes = setup.kwargs["function"](context)
    return [node.kwargs for node in nodes if type(node).__name__ == "Node"]


def _named(nodes: list[dict[str, Any]], executable: str) -> dict[str, Any]:
    (found,) = (node for node in nodes if node["executable"] == executable)
    return found


def test_nothing_but_the_loop_owns_the_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = _launched(monkeypatch)
    assert sorted(node["executable"] for node in nodes) == [
        "realsense2_camera_node", "robot_state_publisher", "ros2_control_node",
        "rosbridge_websocket", "spawner",
    ]  # fmt: skip
    assert {node["package"] for node in nodes} <= set(PACKAGES) | MAKERS


@pytest.mark.parametrize("kind", ["realsense", "usb"])
def test_either_camera_publishes_the_topic_that_the_loop_expects(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = _launched(monkeypatch, camera=kind, port="none")
    (camera,) = (node for node in nodes if node["package"] != "rosbridge_server")
    # realsense2_camera: ~/color/image_raw; usb_cam: image_raw in its namespace.
    topic = (
        f"{camera['namespace']}/{camera['name']}/color/image_raw"
        if kind == "realsense"
        else f"{camera['namespace']}/image_raw"
    )
    assert f"{topic}/compressed" == DEFAULTS["camera_topic"]
    assert "compressed_image_transport" in PACKAGES


def test_a_second_camera_is_optional_and_has_its_own_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    one = _launched(monkeypatch, camera="usb", port="none")
    two = _launched(
        monkeypatch, camera="usb", port="none", wrist_camera="usb", wrist_video_device="/dev/video4"
    )
    wrist = two.pop(1)
    assert [node["executable"] for node in two] == [node["executable"] for node in one]
    assert (wrist["namespace"], wrist["package"]) == ("/wrist", "usb_cam")
    assert wrist["parameters"][0]["video_device"] == "/dev/video4"
    with pytest.raises(ValueError, match="wrist_camera:=realsense, expected usb or none"):
        _launched(monkeypatch, wrist_camera="realsense")


def test_rosbridge_listens_on_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = _launched(monkeypatch, camera="none", port="none", rosbridge_port=BEHIND)
    (rosbridge,) = nodes
    assert rosbridge["parameters"] == [{"address": "127.0.0.1", "port": int(BEHIND)}]
    with pytest.raises(ValueError, match="camera:=webcam, expected realsense, usb or none"):
        _launched(monkeypatch, camera="webcam")


def test_the_port_reaches_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = _launched(monkeypatch, port="/dev/crane_x7")
    (parameters,) = _named(nodes, "robot_state_publisher")["parameters"]
    words = "".join(parameters["robot_description"].args[0].args[0])
    assert words.startswith("xacro /share/crane_x7_description/urdf/crane_x7.urdf.xacro ")
    assert " port_name:=/dev/crane_x7 baudrate:=3000000 timeout_seconds:=1.0 " in words


def test_the_controllers_have_the_names_and_joints_of_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    controllers = yaml.safe_load((HERE / "controllers.yaml").read_text())
    types_of = controllers["controller_manager"]["ros__parameters"]
    arm = DEFAULTS["arm_topic"].split("/")[1]
    gripper = DEFAULTS["gripper_action"].split("/")[1]
    assert types_of[arm]["type"] == "joint_trajectory_controller/JointTrajectoryController"
    assert types_of[gripper]["type"] == "position_controllers/GripperActionController"
    assert controllers[arm]["ros__parameters"]["joints"] == list(ARM_JOINT_NAMES)
    assert controllers[gripper]["ros__parameters"]["joint"] == JOINT_NAMES[-1]
    spawned = _named(_launched(monkeypatch), "spawner")["arguments"]
    assert set(spawned) & set(types_of) == set(types_of) - {"update_rate"}


def test_the_udev_rule_gives_the_port_its_name_and_latency() -> None:
    rules = (HERE / "99-crane-x7.rules").read_text()
    lines = [line for line in rules.splitlines() if line and not line.startswith("#")]
    assert len(lines) == 2
    assert re.search(r'SUBSYSTEM=="tty".*GROUP="dialout".*SYMLINK\+="crane_x7"', lines[0])
    assert re.search(r'SUBSYSTEM=="usb-serial".*ATTR\{latency_timer\}="1"', lines[1])
