"""`crane-x7-remote sim-robot` as a separate process."""

from __future__ import annotations

import signal
import socket
import time

import numpy as np
import psutil
import pytest
from sim_robot_rig import ready_port, started
from websockets.sync.client import ClientConnection, connect

from crane_x7_remote.rosbridge import frames, messages, protocol
from crane_x7_vla_rl.robot import ARM_JOINT_NAMES, HOME_RAD

CAMERA, JOINTS = "/camera/color/image_raw/compressed", "/joint_states"
ARM = "/crane_x7_arm_controller/joint_trajectory"


def ask(connection: ClientConnection, topic: str, type_name: str) -> None:
    operation = protocol.subscribe(topic, type_name, id=topic, compression="cbor")
    connection.send(protocol.encode_json(operation))


def next_message(connection: ClientConnection, topic: str) -> dict[str, object]:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        operation = protocol.decode(connection.recv(timeout=10))
        if operation["op"] == "publish" and operation["topic"] == topic:
            message: dict[str, object] = operation["msg"]
            return message
    raise AssertionError(f"nothing came on {topic}")


def position(connection: ClientConnection) -> np.ndarray:
    return messages.joint_state(next_message(connection, JOINTS)).position_rad


@pytest.mark.parametrize("arm", ["kinematic", "maniskill"])
def test_it_shows_pictures_and_moves_on_a_trajectory_and_ends_on_sigterm(arm: str) -> None:
    with started("--arm", arm, "--port", "0") as process:
        port = ready_port(process)
        with connect(f"ws://127.0.0.1:{port}", max_size=None) as connection:
            ask(connection, CAMERA, "sensor_msgs/CompressedImage")
            frame = frames.from_message(next_message(connection, CAMERA), 0.0)
            assert frames.decode_image(frame).shape == (480, 640, 3)
            ask(connection, JOINTS, "sensor_msgs/msg/JointState")
            np.testing.assert_allclose(position(connection), HOME_RAD, atol=0.05)
            target = HOME_RAD[:7] + 0.2
            point = {
                "positions": target.tolist(),
                "velocities": [0.0] * 7,
                "time_from_start": {"sec": 0, "nanosec": 500_000_000},
            }
            trajectory = {
                "header": {"stamp": {"sec": 0, "nanosec": 0}, "frame_id": ""},
                "joint_names": list(ARM_JOINT_NAMES),
                "points": [point],
            }
            connection.send(protocol.encode_json(protocol.publish(ARM, trajectory)))
            deadline = time.monotonic() + 5
            while np.abs(position(connection)[:7] - target).max() > 0.05:
                assert time.monotonic() < deadline, "the arm did not arrive"
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        assert process.wait(timeout=10) == 0
        assert time.monotonic() - asked < 3


def test_joint_states_come_as_fast_as_the_control_rate() -> None:
    with started("--arm", "kinematic", "--port", "0", "--control-rate", "200") as process:
        port = ready_port(process)
        with connect(f"ws://127.0.0.1:{port}", max_size=None) as connection:
            ask(connection, JOINTS, "sensor_msgs/JointState")
            next_message(connection, JOINTS)
            stamps = [
                messages.read_stamp(next_message(connection, JOINTS)["header"])  # type: ignore[arg-type]
                for _ in range(400)
            ]
    gaps = np.diff(stamps)
    assert np.median(gaps) == pytest.approx(1 / 200, abs=0.001)
    assert stamps[-1] - stamps[0] < 2 * 400 / 200, "a busy machine may skip a few"


def test_the_clock_is_stepped_on_a_topic_while_the_arm_moves() -> None:
    with started("--arm", "kinematic", "--port", "0") as process:
        port = ready_port(process)
        with connect(f"ws://127.0.0.1:{port}", max_size=None) as connection:
            ask(connection, JOINTS, "sensor_msgs/JointState")
            for seconds in (-3600.0, 7200.0, -3600.0):
                before = next_message(connection, JOINTS)["header"]
                step = protocol.publish("/sim/clock_step", {"data": seconds})
                connection.send(protocol.encode_json(step))
                deadline = time.monotonic() + 5
                shift = 0.0
                while abs(shift - seconds) > 5:
                    assert time.monotonic() < deadline, f"stepped by {shift} s"
                    now = next_message(connection, JOINTS)["header"]
                    shift = messages.read_stamp(now) - messages.read_stamp(before)  # type: ignore[arg-type]
            target = HOME_RAD[:7] + 0.1
            point = {"positions": target.tolist(), "time_from_start": {"sec": 0, "nanosec": 10**8}}
            message = {"joint_names": list(ARM_JOINT_NAMES), "points": [point]}
            connection.send(protocol.encode_json(protocol.publish(ARM, message)))
            deadline = time.monotonic() + 5
            while np.abs(position(connection)[:7] - target).max() > 0.01:
                assert time.monotonic() < deadline, "the arm stands still after the steps"


def test_sigint_with_clients_connected_ends_with_success() -> None:
    with started("--arm", "kinematic", "--port", "0") as process:
        port = ready_port(process)
        with connect(f"ws://127.0.0.1:{port}", max_size=None) as connection:
            ask(connection, CAMERA, "sensor_msgs/CompressedImage")
            next_message(connection, CAMERA)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=10) == 0


def test_sigterm_while_the_simulation_loads_ends_with_success() -> None:
    with started("--port", "0") as process:
        deadline = time.monotonic() + 60
        while not psutil.Process(process.pid).children():  # the simulation's own process
            assert time.monotonic() < deadline, "the simulation was not started"
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "ready" not in stdout
    assert "Traceback" not in stderr


def test_an_address_that_is_not_ours_is_named() -> None:
    with started("--arm", "kinematic", "--host", "192.0.2.1") as process:
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 7
    assert "192.0.2.1:9090" in stderr


def test_a_port_in_use_is_named_and_ends_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with started("--arm", "kinematic", "--port", str(port)) as process:
            _, stderr = process.communicate(timeout=20)
    assert process.returncode == 7
    assert f"127.0.0.1:{port}" in stderr
    assert "--port" in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    "flags",
    [
        ["--port", "70000"],
        ["--image-size", "huge"],
        ["--camera-rate", "0"],
        ["--camera-rate", "nan"],
        ["--jpeg-quality", "101"],
        ["--arm", "rubber"],
    ],
)
def test_a_wrong_flag_is_a_usage_error(flags: list[str]) -> None:
    with started(*flags) as process:
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 2
    assert flags[0] in stderr


def test_ctrl_c_that_ends_the_guard_first_is_an_end_in_order() -> None:
    """A terminal sends SIGINT to both; while the robot looks away, the guard may end before it."""
    with started("--arm", "kinematic", "--port", "0", "--guard", "0") as process:
        ready_port(process)
        (guard,) = (
            child for child in psutil.Process(process.pid).children() if "guard" in child.cmdline()
        )
        process.send_signal(signal.SIGSTOP)
        guard.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 10
        while guard.status() != psutil.STATUS_ZOMBIE:  # until its parent looks
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        assert process.wait(10) == 0
