"""doctor at a robot: nothing wrong with a healthy one, and each fault found, with its cure."""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import doctor_rig
import guard_rig
import pytest
from links import RecordingServer
from loop_rig import FaultyRobot

from crane_x7_remote.doctor import robot as robot_checks
from crane_x7_remote.doctor import runner
from crane_x7_remote.doctor.command import CHECKS
from crane_x7_remote.doctor.finding import State
from crane_x7_remote.rosbridge.connection import LinkConfig
from crane_x7_remote.tunnel.probe import probe_now

ROBOT = [f"robot {check.name}" for check in CHECKS if check.group == "robot"]
TOKEN = "a-long-word-that-is-secret"
WRIST = "/wrist/image_raw/compressed"


@pytest.fixture
def robot() -> Iterator[FaultyRobot]:
    robot = FaultyRobot()
    with contextlib.closing(robot):
        robot.start()
        yield robot


@contextlib.contextmanager
def guarded(robot: FaultyRobot, *flags: str) -> Iterator[int]:
    """The port of a real guard process before the robot."""
    words = ("--guard-listen", "127.0.0.1:0", "--guard-upstream", f"127.0.0.1:{robot.port}")
    with guard_rig.command("guard", *words, *flags, fake=False) as process:
        line = guard_rig.first_line(process)
        yield int(line.partition("port ")[2].partition(",")[0])


def look(port: int, **environ: str) -> dict[str, Any]:
    """The findings of all checks of the robot, which share one connection."""
    where = {"ROSBRIDGE_HOST": "127.0.0.1", "ROSBRIDGE_PORT": str(port)}
    within = doctor_rig.context(60.0, **where | environ)
    return {name: doctor_rig.examine(name, within) for name in ROBOT}


def wrong(found: dict[str, Any]) -> set[str]:
    """Names of what is not well."""
    bad = (State.WARNING, State.FAILURE)
    return {name.split()[1] for name, finding in found.items() if finding.state in bad}


def test_a_healthy_robot_behind_a_guard_has_no_finding(robot: FaultyRobot) -> None:
    with guarded(robot) as port:
        found = look(port)
    without = {"robot wrist_camera", "robot wrist_image"}
    states = {found[name].state for name in found.keys() - without}
    assert states == {State.OK}, found
    assert {found[name].state for name in without} == {State.SKIPPED}
    assert "WRIST_CAMERA_TOPIC" in found["robot wrist_camera"].words
    assert found["robot ros"].words == "ROS 2"
    assert "160×120" in found["robot image"].words
    assert "Hz" in found["robot joints"].words


def test_without_a_robot_every_check_is_skipped() -> None:
    within = doctor_rig.context()
    found = {name: doctor_rig.examine(name, within) for name in ROBOT}
    assert {finding.state for finding in found.values()} == {State.SKIPPED}


def test_a_wrong_port_is_found_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    found = look(port)
    assert wrong(found) == {"port", "handshake"}
    assert "connection refused" in found["robot port"].words
    assert found["robot port"].cure == "ss -ltn | grep -E '9090|9091'"
    assert found["robot joints"].state is State.SKIPPED


def test_an_unknown_host_is_named() -> None:
    name = "no-such-robot.invalid"
    found = doctor_rig.examine("robot port", ROSBRIDGE_HOST=name)
    assert found.state is State.FAILURE
    assert f"host name '{name}' is unknown" in found.words


def test_another_server_on_the_port_is_not_taken_for_rosbridge() -> None:
    class Web(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = HTTPServer(("127.0.0.1", 0), Web)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        found = look(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
    assert wrong(found) == {"handshake"}
    assert found["robot handshake"].cure == "unset ROSBRIDGE_PORT"


def _no_camera(robot: FaultyRobot) -> None:
    robot.camera_runs = False


def _garbage(robot: FaultyRobot) -> None:
    robot.picture = b"\xff\xd8\xff\xe0 this is no JPEG" * 20


def _truncated(robot: FaultyRobot) -> None:
    robot.picture = robot.picture[: len(robot.picture) // 2]


def _other_names(robot: FaultyRobot) -> None:
    robot.tamper = lambda message: message | {"name": [f"other_{name}" for name in message["name"]]}


def _outside(robot: FaultyRobot) -> None:
    robot.tamper = lambda message: (
        message | {"position": [position + 4.0 for position in message["position"]]}
    )


def _not_numbers(robot: FaultyRobot) -> None:
    robot.tamper = lambda message: message | {"position": [math.nan] * len(message["position"])}


def _unstamped(robot: FaultyRobot) -> None:
    def without_stamp(message: dict[str, Any]) -> dict[str, Any]:
        return message | {"header": message["header"] | {"stamp": {"sec": 0, "nanosec": 0}}}

    robot.tamper = without_stamp


def _camera_ahead(robot: FaultyRobot) -> None:
    robot.camera_ahead_s = lambda _: 37.0


@pytest.mark.parametrize(
    ("plant", "checks", "words"),
    [
        (_no_camera, {"camera"}, "no message on /camera/color/image_raw/compressed"),
        (_garbage, {"image"}, "/camera/color/image_raw/compressed: "),
        (_truncated, {"image"}, "/camera/color/image_raw/compressed: "),
        (_other_names, {"joints"}, "/joint_states: "),
        (_outside, {"limits"}, "measured at"),
        (_not_numbers, {"joints"}, "nan"),
        (_unstamped, {"clock"}, "has no stamp"),
        (_camera_ahead, {"clock"}, "TAI"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_fault_of_a_topic_is_found_alone(
    robot: FaultyRobot, plant: Callable[[FaultyRobot], None], checks: set[str], words: str
) -> None:
    plant(robot)
    found = look(robot.port)
    assert wrong(found) - {"guard"} == checks, found
    assert any(words in found[f"robot {check}"].words for check in checks), found
    assert all(found[f"robot {check}"].cure for check in checks)


@pytest.mark.parametrize("fault", ["none", "silent", "garbage", "another clock"])
def test_the_wrist_camera_is_checked_like_the_other(fault: str) -> None:
    robot = FaultyRobot(wrist_topic=WRIST)
    robot.wrist_runs = fault != "silent"
    if fault == "garbage":
        robot.wrist_picture = b"\xff\xd8\xff\xe0 this is no JPEG" * 20
    robot.wrist_ahead_s = 2.0 if fault == "another clock" else 0.0
    with contextlib.closing(robot):
        robot.start()
        found = look(robot.port, WRIST_CAMERA_TOPIC=WRIST)
    expected = {"none": set(), "silent": {"wrist_camera"}, "garbage": {"wrist_image"},
                "another clock": {"wrist_camera"}}  # fmt: skip
    assert wrong(found) - {"guard"} == expected[fault], found
    words = found["robot wrist_camera"].words
    said = {"silent": "no message on", "another clock": "stamped +"}.get(fault, "kB each")
    assert words.startswith(WRIST)
    assert said in words
    if fault == "none":
        assert found["robot wrist_image"].words == "640×480 pixels"


def test_a_robot_without_a_guard_is_a_warning(robot: FaultyRobot) -> None:
    found = look(robot.port)
    assert wrong(found) == {"guard"}
    assert found["robot guard"].state is State.WARNING


def test_another_camera_topic_is_named(robot: FaultyRobot) -> None:
    found = look(robot.port, CAMERA_TOPIC="/usb_cam/image_raw")
    assert "camera" in wrong(found)
    assert "usually end in /compressed" in found["robot camera"].words
    assert found["robot camera"].cure == "ros2 topic hz /usb_cam/image_raw"


def test_rosapi_names_the_topic_that_the_camera_has() -> None:
    """The vendor's namespace differs between versions of realsense2_camera."""
    types = {
        "/camera/camera/color/image_raw/compressed": "sensor_msgs/msg/CompressedImage",
        "/camera/camera/aligned_depth/compressed": "sensor_msgs/msg/CompressedImage",
        "/joint_states": "sensor_msgs/msg/JointState",
        "/arm/joint_states": "std_msgs/msg/String",
    }
    with RecordingServer() as server:
        answering = Thread(target=_answer, args=(server, types), daemon=True)
        answering.start()
        within = doctor_rig.context(
            60.0, ROSBRIDGE_HOST="127.0.0.1", ROSBRIDGE_PORT=str(server.port),
            JOINT_STATES_TOPIC="/arm/joint_states",
        )  # fmt: skip
        camera = doctor_rig.examine("robot camera", within)
        joints = doctor_rig.examine("robot joints", within)
    assert "the robot has no such topic" in camera.words
    expected = "export CAMERA_TOPIC=/camera/camera/color/image_raw/compressed"
    assert camera.cure == expected
    assert "the robot has it as std_msgs/msg/String" in joints.words
    assert joints.cure == "export JOINT_STATES_TOPIC=/joint_states"


def _answer(server: RecordingServer, types: dict[str, str]) -> None:
    """Answer calls of rosapi like rosbridge does."""
    answered = 0
    while True:
        calls = server.of("call_service")
        if len(calls) > answered:
            answered = len(calls)
            values = {"topics": list(types), "types": list(types.values())}
            server.send(
                {"op": "service_response", "service": "/rosapi/topics", "values": values,
                 "result": True, "id": "doctor"}
            )  # fmt: skip
        time.sleep(0.02)


def test_a_clock_that_is_off_is_measured() -> None:
    robot = FaultyRobot(clock_offset_s=-120.0)
    with contextlib.closing(robot):
        robot.start()
        found = look(robot.port)
    assert wrong(found) == {"clock", "guard"}
    assert "the robot's clock is 120." in found["robot clock"].words
    assert "behind this machine's" in found["robot clock"].words
    assert found["robot clock"].cure == "chronyc tracking"


def test_a_guard_that_is_stopped_is_found_and_its_cure_works(robot: FaultyRobot) -> None:
    with guarded(robot) as port:
        stop = ("stop", "--host", "127.0.0.1", "--port", str(port), "--reason", "hand in the way")
        with guard_rig.command(*stop, fake=False) as stopping:
            assert stopping.wait(30) == 0
        found = look(port)
        assert wrong(found) == {"guard"}
        assert "hand in the way" in found["robot guard"].words
        cure = found["robot guard"].cure.split()
        assert cure[:2] == ["crane-x7-remote", "resume"]
        with guard_rig.command(*cure[1:], fake=False) as resuming:
            assert resuming.wait(30) == 0
        assert wrong(look(port)) == set()


def test_a_wrong_token_is_found_and_never_shown(robot: FaultyRobot) -> None:
    with guarded(robot, "--guard-token", TOKEN) as port:
        found = look(port, ROSBRIDGE_TOKEN="another-long-word")
        assert wrong(found) == {"handshake"}
        assert "HTTP 401" in found["robot handshake"].words
        assert "export ROSBRIDGE_TOKEN" in found["robot handshake"].cure
        right = look(port, ROSBRIDGE_TOKEN=TOKEN)
    assert wrong(right) == set()
    assert not any(TOKEN in finding.words for finding in (*found.values(), *right.values()))


def test_a_camera_slower_than_the_loop_is_a_warning(robot: FaultyRobot) -> None:
    found = look(robot.port, VLA_INFERENCE_RATE="150")
    assert "camera" in wrong(found)
    assert "VLA_INFERENCE_RATE is 150 Hz" in found["robot camera"].words


def test_the_checks_share_one_connection(robot: FaultyRobot) -> None:
    """Eleven clients would be more than a guard admits."""
    with guarded(robot, "--guard-max-clients", "1") as port:
        code, found, log = doctor_rig.doctor(
            "--only", "robot", "--rosbridge-host", "127.0.0.1", "--rosbridge-port", str(port)
        )
    states = {name: check["state"] for name, check in found.items() if "wrist" not in name}
    assert set(states.values()) == {"ok"}, (found, log)
    assert code == 0, (found, log)
    assert {found[f"robot {name}"]["state"] for name in ("wrist_camera", "wrist_image")} == {
        "skipped"
    }  # no topic is set


def test_a_late_handshake_does_not_take_the_place_of_the_others(
    robot: FaultyRobot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(link: LinkConfig) -> None:
        time.sleep(1.0)  # the other checks would be connected by now
        probe_now(link)

    monkeypatch.setattr(robot_checks, "probe_now", late)
    with guarded(robot, "--guard-max-clients", "1") as port:
        where = {"ROSBRIDGE_HOST": "127.0.0.1", "ROSBRIDGE_PORT": str(port)}
        checks = [check for check in CHECKS if check.group == "robot"]
        results = runner.run(checks, doctor_rig.context(60.0, **where))
    bad = [result for result in results if result.finding.state not in (State.OK, State.SKIPPED)]
    assert bad == []
    assert {result.check.name: result.finding.state for result in results}["camera"] is State.OK


def test_nothing_is_published_or_advertised(robot: FaultyRobot) -> None:
    look(robot.port)
    assert robot.moved == 0
    assert robot.sessions == []
