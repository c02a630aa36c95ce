"""The page that shows the simulated arm, fetched as a browser fetches it."""

from __future__ import annotations

import argparse
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from loop_rig import RunningLoop, wait_until
from websockets.sync.client import connect

from crane_x7_remote import cli
from crane_x7_remote.errors import ExitCode, SimulationError
from crane_x7_remote.rosbridge import camera_pose, protocol
from crane_x7_remote.rosbridge.topics import CAMERA_POSE_TOPIC, STRING
from crane_x7_remote.settings import Settings
from crane_x7_remote.sim_robot import command
from crane_x7_remote.sim_robot.arm import KinematicArm, still_picture
from crane_x7_remote.sim_robot.robot import RobotConfig, SimRobot
from crane_x7_remote.sim_robot.server import ServerConfig
from crane_x7_remote.sim_robot.view import View
from crane_x7_vla_rl.camera_pose import SIM_POSE
from crane_x7_vla_rl.robot import HOME_RAD, JOINT_NAMES

PICTURE = still_picture(160, 120)


@pytest.fixture
def robot() -> Iterator[SimRobot]:
    config = RobotConfig(server=ServerConfig(port=0))
    with SimRobot(config, lambda: KinematicArm(jpeg=PICTURE)) as running:
        yield running


@pytest.fixture
def view(robot: SimRobot) -> Iterator[View]:
    with View(0) as running:
        running.watch("127.0.0.1", robot.port, Settings())
        yield running


def get(view: View, path: str) -> tuple[str, bytes]:
    with urllib.request.urlopen(view.url + path, timeout=5) as answer:
        return answer.headers["Content-Type"], answer.read()


def state(view: View) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(get(view, "/state.json")[1])
    return found


def test_the_page_shows_camera_joints_and_what_the_loop_does(robot: SimRobot, view: View) -> None:
    kind, page = get(view, "/")
    assert kind.startswith("text/html")
    assert b"/camera.jpg" in page
    wait_until(lambda: view.picture() is not None and state(view)["joints"], 5, "a picture")
    kind, picture = get(view, "/camera.jpg?3")
    assert kind == "image/jpeg"
    assert simplejpeg.decode_jpeg(picture).shape == (120, 160, 3)
    found = state(view)
    assert found["arm"] == "at rest"
    assert "none connected" in found["loop"]
    degrees = {joint["name"]: joint["deg"] for joint in found["joints"]}
    assert list(degrees) == list(JOINT_NAMES)
    np.testing.assert_allclose(list(degrees.values()), np.degrees(HOME_RAD), atol=0.5)
    with RunningLoop(robot.port, instruction="wave") as loop:
        wait_until(lambda: state(view)["arm"] == "moving", 5, "the arm moves")
        wait_until(lambda: "drives at" in state(view)["loop"], 5, "the loop drives")
        found = state(view)
    assert found["task"] == "wave"
    assert loop.session in found["loop"]


def test_before_the_robot_is_there_the_page_says_so() -> None:
    with View(0) as view:
        assert state(view)["arm"] == "starting"
        with pytest.raises(urllib.error.HTTPError, match="503"):
            get(view, "/camera.jpg")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(view, "/etc/passwd")


def test_a_port_that_is_taken_is_named_before_the_scene_is_built() -> None:
    with View(0) as view:
        port = int(view.url.rpartition(":")[2])
        with pytest.raises(SimulationError, match=rf"--view {port}: .* give another port"):
            View(port)
    assert SimulationError.exit_code == ExitCode.SIMULATION


@pytest.mark.parametrize("robot_says", [True, False])
def test_a_late_subscriber_hears_where_the_camera_stands(robot_says: bool) -> None:
    config = RobotConfig(server=ServerConfig(port=0), camera_pose=SIM_POSE if robot_says else None)
    operation = protocol.subscribe(CAMERA_POSE_TOPIC, STRING, id="a", compression="none")
    with (
        SimRobot(config, KinematicArm) as robot,
        connect(f"ws://127.0.0.1:{robot.port}") as link,
    ):
        link.send(protocol.encode_json(operation))
        if not robot_says:
            with pytest.raises(TimeoutError):
                link.recv(timeout=0.3)
            return
        heard = protocol.decode(link.recv(timeout=5))
        link.send(protocol.encode_json(operation))
        with pytest.raises(TimeoutError):
            link.recv(timeout=0.2)
    pose = camera_pose.read(heard["msg"])
    assert pose.camera(640, 480).position_m == SIM_POSE.position_m


def test_a_camera_pose_that_cannot_be_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["sim-robot", "--camera-pose", "no/such.yaml"])
    assert caught.value.code == ExitCode.USAGE
    assert "no/such.yaml cannot be read" in capsys.readouterr().err


def test_the_file_of_a_real_camera_fits_the_simulated_one(tmp_path: Path) -> None:
    """What is drawn is rectified: a lens in what the robot states would bend it."""
    path = tmp_path / "camera.yaml"
    path.write_text(
        "position_m: [0.8, 0.25, 0.62]\ntarget_m: [0.17, 0, 0.1]\nfov_deg: 45\nwidth: 640\n"
        "height: 480\nlens: {focal_px: [610, 612], centre_px: [318, 244],"
        " distortion: [-0.1, 0.05, 0, 0, 0]}\n"
    )
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    stated = parser.parse_args(["--camera-pose", str(path)]).base_camera_pose
    assert stated.lens is None
    assert stated.position_m == (0.8, 0.25, 0.62)
