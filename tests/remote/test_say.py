"""`crane-x7-remote say`, run as the operator runs it, against the real server and real loops."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from guard_rig import RunningGuard
from loop_rig import RunningLoop, SwingingPolicy, wait_until
from websockets.sync.client import connect

from crane_x7_remote.errors import ExitCode
from crane_x7_remote.rosbridge import messages, protocol
from crane_x7_remote.sim_robot.arm import KinematicArm
from crane_x7_remote.sim_robot.robot import RobotConfig, SimRobot
from crane_x7_remote.sim_robot.server import ServerConfig
from crane_x7_vla_rl.camera_pose import CameraPose

TOPIC = "/vla/update_instruction"


@pytest.fixture
def robot() -> Iterator[SimRobot]:
    with SimRobot(RobotConfig(server=ServerConfig(port=0)), KinematicArm) as running:
        yield running


def say(text: str, host: str, port: int, *more: str) -> subprocess.CompletedProcess[str]:
    flags = ["--rosbridge-host", host, "--rosbridge-port", str(port)]
    return subprocess.run(
        [sys.executable, "-m", "crane_x7_remote", "say", text, *flags, *more],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("text", ["pick up the blue cube", 'say "青" \\ and more'])
def test_what_is_said_reaches_a_subscriber(robot: SimRobot, text: str) -> None:
    with RunningLoop(robot.port), connect(f"ws://127.0.0.1:{robot.port}") as listener:
        operation = protocol.subscribe(TOPIC, "std_msgs/msg/String", id="a", compression="cbor")
        listener.send(protocol.encode_json(operation))
        result = say(text, "127.0.0.1", robot.port)
        assert (result.returncode, result.stderr) == (0, "")
        heard = protocol.decode(listener.recv(timeout=5))
    assert messages.instruction(heard["msg"]) == text


class ChoosyPolicy(SwingingPolicy):
    """Knows one task, and must know where the camera stands."""

    pose: CameraPose | None = None

    def look_through(self, pose: CameraPose) -> None:
        self.pose = pose

    def refusal(self, instruction: str) -> str | None:
        return None if instruction == "wave" else f'"{instruction}" is unknown; expected "wave"'


def test_a_loop_that_understands_the_task_accepts_it_through_the_guard(robot: SimRobot) -> None:
    policy = ChoosyPolicy()
    with RunningGuard(robot.port) as guard, RunningLoop(guard.port, policy) as loop:
        result = say("wave", "127.0.0.1", guard.port)
        wait_until(lambda: policy.pose is not None, 5, "where the camera stands")
    assert (result.returncode, result.stderr) == (ExitCode.OK, "")
    assert result.stdout == f"accepted by loop {loop.session}: wave\n"


def test_a_task_that_a_loop_refuses_is_no_success(robot: SimRobot) -> None:
    """Every loop is waited for: the one without an opinion accepts, the other one refuses."""
    with RunningLoop(robot.port, ChoosyPolicy()) as choosy, RunningLoop(robot.port) as other:
        result = say("dance", "127.0.0.1", robot.port)
        listed = say("dance", "127.0.0.1", robot.port, "--json")
    assert result.returncode == listed.returncode == ExitCode.TASK_REFUSED
    assert f"accepted by loop {other.session}: dance" in result.stdout
    assert f'refused by loop {choosy.session}: "dance" is unknown; expected "wave"' in result.stderr
    found = json.loads(listed.stdout)
    assert found["instruction"] == "dance"
    states = {answer["session"]: answer["task_state"] for answer in found["answers"]}
    assert states == {choosy.session: "refused", other.session: "accepted"}


def test_nobody_answers_where_no_loop_runs(robot: SimRobot) -> None:
    result = say("wave", "127.0.0.1", robot.port)
    assert result.returncode == ExitCode.NO_LOOP
    assert "no loop answered within 3 s" in result.stderr
    assert result.stdout == ""


def test_a_blank_task_is_refused_before_connecting() -> None:
    result = say("  ", "127.0.0.1", 1)
    assert result.returncode != 0
    assert "empty" in result.stderr


def test_a_refused_port_is_named_with_the_next_thing_to_check() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        result = say("pick up the red cube", "127.0.0.1", port)
    assert result.returncode == 4
    assert f"127.0.0.1:{port}" in result.stderr
    assert "check" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_host_is_named() -> None:
    result = say("pick up the red cube", "no-such-robot.invalid", 9090)
    assert result.returncode == 4
    assert "no-such-robot.invalid:9090" in result.stderr


@pytest.fixture
def mute_port() -> Iterator[int]:
    """A port that takes every connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        yield int(mute.getsockname()[1])  # the kernel accepts; nobody has to


def test_a_server_that_is_no_rosbridge_is_given_up(mute_port: int) -> None:
    result = say("pick up the red cube", "127.0.0.1", mute_port)
    assert result.returncode == 4, result.stderr
    assert "not as a rosbridge" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_goodbye_that_nobody_answers_changes_no_outcome(mute_port: int) -> None:
    """Given up early, while the TCP connection still stands, roslibpy's close times out always;
    given up after 5 s, autobahn's own limit, it does so only sometimes."""
    code = (
        "import roslibpy, sys, time\n"
        "from crane_x7_remote import cli, say\n"
        "say.CONNECT_TIMEOUT_S = 1.0\n"
        "started = time.monotonic()\n"
        f"flags = ['--rosbridge-host', '127.0.0.1', '--rosbridge-port', '{mute_port}']\n"
        "code = cli.main(['say', 'pick up the red cube', *flags])\n"
        "print(time.monotonic() - started)\n"
        "sys.exit(code)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 4, result.stderr
    assert "not as a rosbridge" in result.stderr
    assert "Traceback" not in result.stderr
    assert float(result.stdout) < 10  # roslibpy alone would wait that long for its goodbye
